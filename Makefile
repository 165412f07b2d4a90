# A facade over CMake and Ninja. `./dev serve` and `./dev test` install what is missing and come here.
HOST ?= 127.0.0.1
PORT ?= 8000
MODEL ?=
ARGS ?=
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)
JOBS ?= $(shell nproc)
SOURCES = $(shell git ls-files -- '*.c' '*.h')

.PHONY: all program serve test e2e cuda bench format check-format asan tsan fuzz clean
all: build/build.ninja
	@ninja -C build -j $(JOBS)
program: build/build.ninja
	@ninja -C build -j $(JOBS) quire
build/build.ninja:
	@cmake --preset release
serve: program
	@model='$(MODEL)'; [ -n "$$model" ] || model=$$($(PYTHON) tools/fetch_model.py) || exit 1; \
	exec build/quire serve "$$model" --host $(HOST) --port $(PORT) $(ARGS)
test: all
	@tools/run_tests.sh build $(JOBS)
e2e: all
	@tools/run_tests.sh --e2e build $(JOBS)
cuda:
	@cmake --preset release -B build-cuda -DQR_CUDA=ON && ninja -C build-cuda -j $(JOBS)
bench: program
	@model='$(MODEL)'; [ -n "$$model" ] || model=$$($(PYTHON) tools/fetch_model.py) || exit 1; \
	for what in limits throughput latency; do build/quire bench $$what "$$model" $(ARGS) || exit 1; done
format:
	@clang-format -i $(SOURCES)
check-format:
	@bad=$$(for f in $(SOURCES); do clang-format --dry-run --Werror $$f >/dev/null 2>&1 || echo " $$f"; done); \
	[ -z "$$bad" ] || { echo "not formatted (make format does it):$$bad"; exit 1; }
asan tsan:
	@cmake --preset $@ && ninja -C build-$@ -j $(JOBS) && ctest --test-dir build-$@ --output-on-failure -j $(JOBS)
fuzz:
	@cmake --preset fuzz && ninja -C build-fuzz -j $(JOBS) fuzzers && tools/run_fuzz.sh build-fuzz $${SECONDS_EACH:-20}
clean:
	@rm -rf build build-*
