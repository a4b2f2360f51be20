# Entry points; CMakePresets.json has the build itself.
.DEFAULT_GOAL := help
.PHONY: help demo build build-cuda test test-cuda test-asan test-tsan check format clean deps

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo:  ## set everything up and run it; MODEL=DIR KEEP_SHARE=0.5 LAYOUT=per_head KEEP=1
	@MODEL='$(MODEL)' KEEP='$(KEEP)' KEEP_SHARE='$(KEEP_SHARE)' LAYOUT='$(LAYOUT)' tools/demo.sh

deps:
	@tools/install-deps.sh

build: deps  ## build everything, optimised, into build/cpu-release/bin
	@tools/build-and-test.sh cpu-release --build-only

build-cuda: deps  ## the same with the CUDA backend, into build/cuda-release/bin; needs nvcc 13, no GPU
	@tools/build-and-test.sh cuda-release --build-only

test: deps  ## build and run every test
	@tools/build-and-test.sh cpu-release

test-cuda: deps  ## the tests of the CUDA build; those that need a device skip without one
	@tools/build-and-test.sh cuda-release

test-asan: deps  ## the tests under AddressSanitizer and UBSan
	@tools/build-and-test.sh cpu-debug

test-tsan: deps  ## the tests under ThreadSanitizer
	@tools/build-and-test.sh cpu-tsan

check:  ## is everything formatted?
	@tools/check.sh

format:  ## format everything
	@tools/check.sh --fix

clean:  ## remove what was built; models stay
	rm -rf build
