#!/bin/sh
# Prints docs/options.md: what every verb's --help says. `tools/options_doc.sh build/quire >docs/options.md`;
# a test compares the two.
set -eu
quire=$1
echo "# Options"
echo
echo "Made by \`tools/options_doc.sh\` from \`src/cli/settings.def\`; the same text as \`quire VERB --help\`."
for verb in serve run run-batch inspect tokenize template bench pull; do
    printf '\n## quire %s\n\n```\n' "$verb"
    "$quire" "$verb" --help
    echo '```'
done
