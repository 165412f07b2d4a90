/* From the JSON of a normalizer, pre-tokenizer, post-processor or decoder to steps. Sequences are walked with an
 * explicit stack of bounded depth. */
#include "text/tokenizer_impl.h"

enum { NEST_MAX = 16 };

/* Walks `json` and the members of its Sequences in order, calling `leaf` on everything else. */
static qr_status each_leaf(qr_tokenizer *tokenizer, const qr_json *json, const char *list, const char *part,
                           qr_status (*leaf)(qr_tokenizer *, const qr_json *, qr_str, qr_error *),
                           qr_error *err)
{
    struct {
        const qr_json *items;
        size_t at;
    } stack[NEST_MAX];
    int depth = 0, steps = 0;
    const qr_json *node = json;
    for (;;) {
        if (node != NULL && !qr_json_is(node, QR_JSON_NULL)) {
            qr_str type = qr_json_string(qr_json_get(node, "type"));
            if (type.data == NULL)
                return qr_fail(err, QR_BAD_FILE, "%s: %s: has no \"type\"", tokenizer->name, part);
            if (++steps > QR_STEPS_MAX)
                return qr_fail(err, QR_LIMIT_EXCEEDED, "%s: %s: more than %d steps", tokenizer->name, part,
                               QR_STEPS_MAX);
            if (qr_str_equals(type, "Sequence")) {
                if (depth == NEST_MAX)
                    return qr_fail(err, QR_LIMIT_EXCEEDED, "%s: %s: nested deeper than %d", tokenizer->name,
                                   part, NEST_MAX);
                stack[depth].items = qr_json_get(node, list);
                stack[depth++].at = 0;
            } else {
                qr_status status = leaf(tokenizer, node, type, err);
                if (status != QR_OK)
                    return status;
            }
        }
        while (depth > 0 && stack[depth - 1].at >= qr_json_count(stack[depth - 1].items))
            depth--;
        if (depth == 0)
            return QR_OK;
        node = qr_json_at(stack[depth - 1].items, stack[depth - 1].at++);
    }
}

static qr_status unknown(const qr_tokenizer *tokenizer, const char *part, qr_str type, qr_error *err)
{
    return qr_fail(err, QR_UNSUPPORTED, "%s: %s: type '%.*s' is not supported", tokenizer->name, part,
                   (int)QR_MIN(type.len, 40u), type.data);
}

static bool flag_of(const qr_json *json, const char *key, bool fallback)
{
    return qr_json_bool(qr_json_get(json, key), fallback);
}

/* A copy of a string member; *len may be NULL. NULL when it is absent or longer than any honest one. */
static char *own_member(qr_tokenizer *tokenizer, const qr_json *json, const char *key, size_t *len)
{
    qr_str text = qr_json_string(qr_json_get(json, key));
    bool usable = text.data != NULL && text.len <= QR_PART_BYTES_MAX;
    if (len != NULL)
        *len = usable ? text.len : 0;
    return usable ? qr_tokenizer_own(tokenizer, text) : NULL;
}

/* {"String": s} as a needle or {"Regex": r} compiled; a needle that is plain text stays one. */
static qr_status parse_pattern(qr_tokenizer *tokenizer, const qr_json *json, const char *part, char **needle,
                               size_t *needle_len, qr_pattern **pattern, qr_error *err)
{
    const qr_json *node = qr_json_get(json, "pattern");
    qr_str text = qr_json_string(qr_json_get(node, "String")),
           regex = qr_json_string(qr_json_get(node, "Regex"));
    if (text.data != NULL && text.len <= QR_PART_BYTES_MAX) {
        *needle = qr_tokenizer_own(tokenizer, text);
        *needle_len = text.len;
        return QR_OK;
    }
    if (regex.data == NULL)
        return qr_fail(err, QR_BAD_FILE, "%s: %s: pattern is neither String nor Regex", tokenizer->name,
                       part);
    qr_status status = qr_pattern_new(regex, pattern, err);
    if (status != QR_OK)
        qr_error_prefix(err, "%s: %s", tokenizer->name, part);
    return status;
}

/* ---- Normalizer ---- */

bool qr_base64_decode(qr_str text, qr_buf *out)
{
    uint32_t bits = 0;
    int count = 0;
    for (size_t i = 0; i < text.len && text.data[i] != '='; i++) {
        char c = text.data[i];
        uint32_t value;
        if (c >= 'A' && c <= 'Z')
            value = (uint32_t)(c - 'A');
        else if (c >= 'a' && c <= 'z')
            value = (uint32_t)(c - 'a') + 26;
        else if (c >= '0' && c <= '9')
            value = (uint32_t)(c - '0') + 52;
        else if (c == '+' || c == '/')
            value = c == '+' ? 62 : 63;
        else
            return false;
        bits = bits << 6 | value;
        count += 6;
        if (count >= 8) {
            count -= 8;
            qr_buf_append_char(out, (char)(bits >> count));
        }
    }
    return true;
}

qr_status qr_tokenizer_add_charsmap(qr_tokenizer *tokenizer, qr_str map, bool longest, qr_error *err)
{
    qr_normalizer_step step = {.kind = QR_NORM_PRECOMPILED, .longest = longest};
    uint32_t trie_bytes = 0;
    if (map.len >= 4)
        memcpy(&trie_bytes, map.data, 4);
    if (map.len < 4 || trie_bytes % 4 != 0 || trie_bytes > map.len - 4)
        return qr_fail(err, QR_BAD_FILE, "%s: normalizer: precompiled_charsmap: trie of %u bytes in %zu",
                       tokenizer->name, trie_bytes, map.len);
    step.charsmap = (uint8_t *)qr_tokenizer_own(tokenizer, qr_str_make(map.data + 4, map.len - 4));
    step.trie_units = trie_bytes / 4;
    step.strings_len = map.len - 4 - trie_bytes;
    QR_VEC_PUSH(&tokenizer->normalizers, step);
    return QR_OK;
}

static qr_status precompiled(qr_tokenizer *tokenizer, const qr_json *json, qr_error *err)
{
    qr_buf map = {0};
    qr_str text = qr_json_string(qr_json_get(json, "precompiled_charsmap"));
    qr_status status;
    if (text.len == 0) /* nothing to replace */
        return QR_OK;
    if (!qr_base64_decode(text, &map))
        status =
            qr_fail(err, QR_BAD_FILE, "%s: normalizer: precompiled_charsmap is not base64", tokenizer->name);
    else
        status = qr_tokenizer_add_charsmap(tokenizer, qr_buf_str(&map), false, err);
    qr_buf_release(&map);
    return status;
}

static bool simple_normalizer(qr_str type, qr_normalizer_step *step)
{
    static const struct {
        const char *name;
        qr_normalizer_kind kind;
        qr_unicode_form form;
    } rows[] = {{"NFC", QR_NORM_FORM, QR_FORM_NFC},         {"NFD", QR_NORM_FORM, QR_FORM_NFD},
                {"NFKC", QR_NORM_FORM, QR_FORM_NFKC},       {"NFKD", QR_NORM_FORM, QR_FORM_NFKD},
                {"Lowercase", QR_NORM_LOWERCASE, 0},        {"Nmt", QR_NORM_NMT, 0},
                {"StripAccents", QR_NORM_STRIP_ACCENTS, 0}, {"ByteLevel", QR_NORM_BYTE_LEVEL, 0}};
    for (size_t i = 0; i < QR_COUNT_OF(rows); i++) {
        if (qr_str_equals(type, rows[i].name)) {
            step->kind = rows[i].kind;
            step->form = rows[i].form;
            return true;
        }
    }
    return false;
}

static qr_status normalizer_leaf(qr_tokenizer *tokenizer, const qr_json *json, qr_str type, qr_error *err)
{
    qr_normalizer_step step = {0};
    if (qr_str_equals(type, "Precompiled"))
        return precompiled(tokenizer, json, err);
    if (qr_str_equals(type, "Strip")) {
        step.kind = QR_NORM_STRIP;
        step.left = flag_of(json, "strip_left", true);
        step.right = flag_of(json, "strip_right", true);
    } else if (qr_str_equals(type, "BertNormalizer")) {
        step.kind = QR_NORM_BERT;
        step.clean_text = flag_of(json, "clean_text", true);
        step.chinese = flag_of(json, "handle_chinese_chars", true);
        step.lowercase = flag_of(json, "lowercase", true);
        step.strip_accents = flag_of(json, "strip_accents", step.lowercase);
    } else if (qr_str_equals(type, "Prepend")) {
        step.kind = QR_NORM_PREPEND;
        step.text = own_member(tokenizer, json, "prepend", &step.text_len);
        if (step.text == NULL)
            return qr_fail(err, QR_BAD_FILE, "%s: normalizer: Prepend without \"prepend\"", tokenizer->name);
    } else if (qr_str_equals(type, "Replace")) {
        step.kind = QR_NORM_REPLACE;
        step.text = own_member(tokenizer, json, "content", &step.text_len);
        if (step.text == NULL)
            return qr_fail(err, QR_BAD_FILE, "%s: normalizer: Replace without \"content\"", tokenizer->name);
        qr_status status =
            parse_pattern(tokenizer, json, "normalizer", &step.needle, &step.needle_len, &step.pattern, err);
        if (status != QR_OK)
            return status;
    } else if (!simple_normalizer(type, &step)) {
        return unknown(tokenizer, "normalizer", type, err);
    }
    QR_VEC_PUSH(&tokenizer->normalizers, step);
    return QR_OK;
}

qr_status qr_tokenizer_parse_normalizer(qr_tokenizer *tokenizer, const qr_json *json, qr_error *err)
{
    return each_leaf(tokenizer, json, "normalizers", "normalizer", normalizer_leaf, err);
}

/* ---- Pre-tokenizer ---- */

static qr_status parse_behavior(const qr_tokenizer *tokenizer, const qr_json *json,
                                qr_split_behavior fallback, qr_split_behavior *out, qr_error *err)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext",
                                        "Contiguous"};
    qr_str name = qr_json_string(qr_json_get(json, "behavior"));
    *out = fallback;
    if (name.data == NULL)
        return QR_OK;
    for (size_t i = 0; i < QR_COUNT_OF(names); i++) {
        if (qr_str_equals(name, names[i])) {
            *out = (qr_split_behavior)i;
            return QR_OK;
        }
    }
    return qr_fail(err, QR_BAD_FILE, "%s: pre_tokenizer: behavior '%.*s'", tokenizer->name,
                   (int)QR_MIN(name.len, 40u), name.data);
}

static qr_status split_step(qr_tokenizer *tokenizer, const qr_json *json, qr_pretokenizer_step *step,
                            qr_error *err)
{
    step->kind = QR_PRE_SPLIT;
    step->invert = flag_of(json, "invert", false);
    qr_status status = parse_behavior(tokenizer, json, QR_SPLIT_ISOLATED, &step->behavior, err);
    if (status != QR_OK)
        return status;
    qr_str regex = qr_json_string(qr_json_get(qr_json_get(json, "pattern"), "Regex"));
    step->scanner = regex.data != NULL ? qr_scanner_of(regex) : QR_SCAN_NONE;
    if (step->scanner != QR_SCAN_NONE)
        return QR_OK;
    return parse_pattern(tokenizer, json, "pre_tokenizer", &step->text, &step->text_len, &step->pattern, err);
}

static qr_status metaspace_step(qr_tokenizer *tokenizer, const qr_json *json, qr_pretokenizer_step *step,
                                qr_error *err)
{
    qr_str scheme = qr_json_string(qr_json_get(json, "prepend_scheme"));
    bool has_prefix = qr_json_is(qr_json_get(json, "add_prefix_space"), QR_JSON_BOOL);
    bool prefix = flag_of(json, "add_prefix_space", true);
    step->kind = QR_PRE_METASPACE;
    step->split = flag_of(json, "split", true);
    step->text = own_member(tokenizer, json, "replacement", &step->text_len);
    if (step->text == NULL || step->text_len == 0)
        return qr_fail(err, QR_BAD_FILE, "%s: pre_tokenizer: Metaspace without \"replacement\"",
                       tokenizer->name);
    step->scheme = QR_PREPEND_ALWAYS;
    if (qr_str_equals(scheme, "never"))
        step->scheme = QR_PREPEND_NEVER;
    else if (qr_str_equals(scheme, "first"))
        step->scheme = QR_PREPEND_FIRST;
    else if (scheme.data != NULL && !qr_str_equals(scheme, "always"))
        return qr_fail(err, QR_BAD_FILE, "%s: pre_tokenizer: Metaspace: unknown prepend_scheme",
                       tokenizer->name);
    if (has_prefix && !prefix) {
        if (scheme.data != NULL && step->scheme != QR_PREPEND_NEVER)
            return qr_fail(err, QR_BAD_FILE,
                           "%s: pre_tokenizer: Metaspace: add_prefix_space contradicts prepend_scheme",
                           tokenizer->name);
        step->scheme = QR_PREPEND_NEVER;
    }
    return QR_OK;
}

static qr_status delimiter_step(qr_tokenizer *tokenizer, const qr_json *json, qr_pretokenizer_step *step,
                                qr_error *err)
{
    step->kind = QR_PRE_DELIMITER;
    step->text = own_member(tokenizer, json, "delimiter", &step->text_len);
    if (step->text == NULL || step->text_len == 0)
        return qr_fail(err, QR_BAD_FILE, "%s: pre_tokenizer: CharDelimiterSplit without \"delimiter\"",
                       tokenizer->name);
    return QR_OK;
}

static qr_status pretokenizer_leaf(qr_tokenizer *tokenizer, const qr_json *json, qr_str type, qr_error *err)
{
    qr_pretokenizer_step step = {0};
    qr_status status = QR_OK;
    if (qr_str_equals(type, "Split")) {
        status = split_step(tokenizer, json, &step, err);
    } else if (qr_str_equals(type, "ByteLevel")) {
        step.kind = QR_PRE_BYTE_LEVEL;
        step.add_prefix_space = flag_of(json, "add_prefix_space", true);
        step.scanner = flag_of(json, "use_regex", true) ? QR_SCAN_GPT2 : QR_SCAN_NONE;
    } else if (qr_str_equals(type, "Metaspace")) {
        status = metaspace_step(tokenizer, json, &step, err);
    } else if (qr_str_equals(type, "Digits")) {
        step.kind = QR_PRE_DIGITS;
        step.split = flag_of(json, "individual_digits", false);
    } else if (qr_str_equals(type, "Punctuation")) {
        step.kind = QR_PRE_PUNCTUATION;
        status = parse_behavior(tokenizer, json, QR_SPLIT_ISOLATED, &step.behavior, err);
    } else if (qr_str_equals(type, "BertPreTokenizer")) {
        step.kind = QR_PRE_BERT;
    } else if (qr_str_equals(type, "Whitespace")) {
        step.kind = QR_PRE_WHITESPACE;
    } else if (qr_str_equals(type, "WhitespaceSplit")) {
        step.kind = QR_PRE_WHITESPACE_SPLIT;
    } else if (qr_str_equals(type, "UnicodeScripts")) {
        step.kind = QR_PRE_SCRIPTS;
    } else if (qr_str_equals(type, "CharDelimiterSplit")) {
        status = delimiter_step(tokenizer, json, &step, err);
    } else if (qr_str_equals(type, "FixedLength")) {
        int64_t length = qr_json_int(qr_json_get(json, "length"), 5);
        if (length < 1 || length > INT32_MAX)
            return qr_fail(err, QR_BAD_FILE, "%s: pre_tokenizer: FixedLength of %lld", tokenizer->name,
                           (long long)length);
        step.kind = QR_PRE_FIXED_LENGTH;
        step.length = (uint32_t)length;
    } else {
        return unknown(tokenizer, "pre_tokenizer", type, err);
    }
    if (status == QR_OK)
        QR_VEC_PUSH(&tokenizer->pretokenizers, step);
    return status;
}

qr_status qr_tokenizer_parse_pretokenizer(qr_tokenizer *tokenizer, const qr_json *json, qr_error *err)
{
    return each_leaf(tokenizer, json, "pretokenizers", "pre_tokenizer", pretokenizer_leaf, err);
}

/* ---- Post-processor ---- */

static void push_item(qr_template_items *items, int32_t id, int64_t type)
{
    qr_template_item item = {id, type > 0 ? 1 : 0};
    QR_VEC_PUSH(items, item);
}

/* ["</s>", 2] */
static int32_t pair_id(const qr_json *json, const char *key)
{
    int64_t id = qr_json_int(qr_json_at(qr_json_get(json, key), 1), -1);
    return id >= 0 && id < QR_TOKEN_ID_MAX ? (int32_t)id : -1;
}

/* [CLS] A [SEP] B [SEP]; Roberta doubles the middle one and has no types. */
static qr_status wrap_pair(qr_tokenizer *tokenizer, const qr_json *json, bool roberta, qr_error *err)
{
    int32_t before = pair_id(json, "cls"), after = pair_id(json, "sep");
    int second = roberta ? 0 : 1;
    if (before < 0 || after < 0)
        return qr_fail(err, QR_BAD_FILE, "%s: post_processor: cls or sep is not [token, id]",
                       tokenizer->name);
    tokenizer->post.count = tokenizer->post_pair.count = 0;
    push_item(&tokenizer->post, before, 0);
    push_item(&tokenizer->post, QR_ITEM_TEXT, 0);
    push_item(&tokenizer->post, after, 0);
    push_item(&tokenizer->post_pair, before, 0);
    push_item(&tokenizer->post_pair, QR_ITEM_TEXT, 0);
    push_item(&tokenizer->post_pair, after, 0);
    if (roberta)
        push_item(&tokenizer->post_pair, after, 0);
    push_item(&tokenizer->post_pair, QR_ITEM_SECOND, second);
    push_item(&tokenizer->post_pair, after, second);
    return QR_OK;
}

static qr_status template_special(qr_tokenizer *tokenizer, const qr_json *json, const qr_json *token,
                                  qr_template_items *items, qr_error *err)
{
    qr_str name = qr_json_string(qr_json_get(token, "id"));
    const qr_json *specials = qr_json_get(json, "special_tokens"), *ids = NULL;
    for (void *it = qr_json_iter(specials); it != NULL; it = qr_json_iter_next(specials, it))
        if (qr_str_equal(qr_json_iter_key(it), name))
            ids = qr_json_get(qr_json_iter_value(it), "ids");
    if (name.data == NULL || ids == NULL)
        return qr_fail(err, QR_BAD_FILE, "%s: post_processor: special token '%.*s' has no ids",
                       tokenizer->name, (int)QR_MIN(name.len, 40u), name.data != NULL ? name.data : "");
    for (size_t i = 0; i < qr_json_count(ids); i++) {
        int64_t id = qr_json_int(qr_json_at(ids, i), -1);
        if (id < 0 || id >= QR_TOKEN_ID_MAX || items->count > QR_STEPS_MAX)
            return qr_fail(err, QR_BAD_FILE, "%s: post_processor: id %lld", tokenizer->name, (long long)id);
        push_item(items, (int32_t)id, qr_json_int(qr_json_get(token, "type_id"), 0));
    }
    return QR_OK;
}

static qr_status template_items(qr_tokenizer *tokenizer, const qr_json *json, const char *key,
                                qr_template_items *items, qr_error *err)
{
    const qr_json *list = qr_json_get(json, key);
    qr_status status = QR_OK;
    items->count = 0;
    if (qr_json_count(list) > QR_STEPS_MAX)
        return qr_fail(err, QR_LIMIT_EXCEEDED, "%s: post_processor: template longer than %d", tokenizer->name,
                       QR_STEPS_MAX);
    for (size_t i = 0; i < qr_json_count(list) && status == QR_OK; i++) {
        const qr_json *token = qr_json_get(qr_json_at(list, i), "SpecialToken");
        const qr_json *text = qr_json_get(qr_json_at(list, i), "Sequence");
        if (token != NULL)
            status = template_special(tokenizer, json, token, items, err);
        else if (text != NULL)
            push_item(items,
                      qr_str_equals(qr_json_string(qr_json_get(text, "id")), "B") ? QR_ITEM_SECOND
                                                                                  : QR_ITEM_TEXT,
                      qr_json_int(qr_json_get(text, "type_id"), 0));
    }
    return status;
}

static qr_status template_step(qr_tokenizer *tokenizer, const qr_json *json, qr_error *err)
{
    qr_status status = template_items(tokenizer, json, "single", &tokenizer->post, err);
    return status == QR_OK ? template_items(tokenizer, json, "pair", &tokenizer->post_pair, err) : status;
}

static qr_status post_leaf(qr_tokenizer *tokenizer, const qr_json *json, qr_str type, qr_error *err)
{
    if (qr_str_equals(type, "ByteLevel")) /* only moves offsets */
        return QR_OK;
    if (qr_str_equals(type, "TemplateProcessing"))
        return template_step(tokenizer, json, err);
    if (qr_str_equals(type, "BertProcessing") || qr_str_equals(type, "RobertaProcessing"))
        return wrap_pair(tokenizer, json, qr_str_equals(type, "RobertaProcessing"), err);
    return unknown(tokenizer, "post_processor", type, err);
}

qr_status qr_tokenizer_parse_post(qr_tokenizer *tokenizer, const qr_json *json, qr_error *err)
{
    return each_leaf(tokenizer, json, "processors", "post_processor", post_leaf, err);
}

/* ---- Decoder ---- */

static qr_status replace_decoder(qr_tokenizer *tokenizer, const qr_json *json, qr_decoder_step *step,
                                 qr_error *err)
{
    step->kind = QR_DEC_REPLACE;
    step->text = own_member(tokenizer, json, "content", &step->text_len);
    if (step->text == NULL)
        return qr_fail(err, QR_BAD_FILE, "%s: decoder: Replace without \"content\"", tokenizer->name);
    return parse_pattern(tokenizer, json, "decoder", &step->needle, &step->needle_len, &step->pattern, err);
}

static qr_status decoder_leaf(qr_tokenizer *tokenizer, const qr_json *json, qr_str type, qr_error *err)
{
    qr_decoder_step step = {0};
    if (qr_str_equals(type, "ByteLevel")) {
        step.kind = QR_DEC_BYTE_LEVEL;
    } else if (qr_str_equals(type, "ByteFallback")) {
        step.kind = QR_DEC_BYTE_FALLBACK;
    } else if (qr_str_equals(type, "Fuse")) {
        step.kind = QR_DEC_FUSE;
    } else if (qr_str_equals(type, "Strip")) {
        step.kind = QR_DEC_STRIP;
        step.text = own_member(tokenizer, json, "content", &step.text_len);
        step.start = (uint32_t)QR_MIN(QR_MAX(qr_json_int(qr_json_get(json, "start"), 0), 0), 1 << 20);
        step.stop = (uint32_t)QR_MIN(QR_MAX(qr_json_int(qr_json_get(json, "stop"), 0), 0), 1 << 20);
        if (step.text == NULL || step.text_len == 0)
            return qr_fail(err, QR_BAD_FILE, "%s: decoder: Strip without \"content\"", tokenizer->name);
    } else if (qr_str_equals(type, "Replace")) {
        qr_status status = replace_decoder(tokenizer, json, &step, err);
        if (status != QR_OK)
            return status;
    } else if (qr_str_equals(type, "Metaspace")) {
        qr_pretokenizer_step like = {0};
        qr_status status = metaspace_step(tokenizer, json, &like, err);
        if (status != QR_OK)
            return status;
        step = (qr_decoder_step){.kind = QR_DEC_METASPACE,
                                 .text = like.text,
                                 .text_len = like.text_len,
                                 .prefix = like.scheme != QR_PREPEND_NEVER};
    } else if (qr_str_equals(type, "WordPiece")) {
        step.kind = QR_DEC_WORDPIECE;
        step.text = own_member(tokenizer, json, "prefix", &step.text_len);
        step.cleanup = flag_of(json, "cleanup", true);
    } else if (qr_str_equals(type, "CTC")) {
        step.kind = QR_DEC_CTC;
        step.text = own_member(tokenizer, json, "pad_token", &step.text_len);
        step.needle = own_member(tokenizer, json, "word_delimiter_token", &step.needle_len);
        step.cleanup = flag_of(json, "cleanup", true);
    } else if (qr_str_equals(type, "BPEDecoder")) {
        step.kind = QR_DEC_BPE;
        step.text = own_member(tokenizer, json, "suffix", &step.text_len);
    } else {
        return unknown(tokenizer, "decoder", type, err);
    }
    QR_VEC_PUSH(&tokenizer->decoders, step);
    return QR_OK;
}

qr_status qr_tokenizer_parse_decoder(qr_tokenizer *tokenizer, const qr_json *json, qr_error *err)
{
    return each_leaf(tokenizer, json, "decoders", "decoder", decoder_leaf, err);
}
