# Two commands do everything from a fresh clone: `make quickstart` and `make test`.
PRESET ?= $(shell tools/preset)
BUILD := build/$(PRESET)
# Threads that wait for work must not take the core from those that have it.
export OMP_WAIT_POLICY ?= passive

.PHONY: quickstart test sweep fuzz weft bench format clean

quickstart:
	tools/setup build
	cmake --preset $(PRESET) -DWEFT_TESTS=OFF -B $(BUILD)-quickstart >/dev/null
	cmake --build $(BUILD)-quickstart --target weft
	tools/quickstart $(BUILD)-quickstart/bin/weft

test:
	tools/setup
	cmake --preset $(PRESET) >/dev/null
	cmake --build $(BUILD)
	ctest --test-dir $(BUILD) --output-on-failure -j 2 -LE sweep

# The long tests that `make test` leaves out.
sweep:
	tools/setup
	cmake --preset $(PRESET) >/dev/null
	cmake --build $(BUILD)
	ctest --test-dir $(BUILD) --output-on-failure -L sweep

# Every parser of foreign files, each for SECONDS (tests/fuzz/README.md).
fuzz:
	tools/fuzz $(or $(SECONDS),60)

# FILTER=training_step chooses; the results also go to $(BUILD)/bench.json.
bench:
	tools/setup
	cmake --preset $(PRESET) >/dev/null
	cmake --build $(BUILD) --target weft_bench
	$(BUILD)/bin/weft_bench --benchmark_filter='$(or $(FILTER),.)' --benchmark_counters_tabular=true \
	  --benchmark_out=$(BUILD)/bench.json --benchmark_out_format=json

weft:
	tools/setup build
	cmake --preset $(PRESET) >/dev/null
	cmake --build $(BUILD) --target weft

format:
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format -i

clean:
	rm -rf build
