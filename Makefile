# Two commands do all set-up on a bare Debian 12 with Rust: `make demo` and `make test`.
# The others: build, test-clients, test-cluster, test-faults, test-guest, test-long, bench, bench-cluster, tidy.

CARGO ?= cargo
# How much longer the long tests are than their seeded twins in `make test`.
export CARGO_TERM_COLOR ?= auto

.PHONY: build demo test test-clients test-cluster test-faults test-guest test-long bench bench-cluster tidy

build:
	@xtask/prepare.sh build
	$(CARGO) build --release --package dhow

demo:
	@xtask/prepare.sh demo
	$(CARGO) build --release --package dhow
	@bench/demo.sh target/release/dhow

test:
	@xtask/prepare.sh test
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- --deny warnings
	$(CARGO) xtask tidy
	DHOW_KUBECTL="$$(xtask/kubectl.sh)" $(CARGO) test --workspace --quiet
	/usr/bin/python3 -m unittest discover --quiet --start-directory runtimes/python/tests
	/usr/bin/node --test runtimes/node/tests/*.test.mjs

# The clients that people have, each installed outside the clone: a recent kubectl, Helm, and programs in Python, JavaScript
# and Go. What needs Go is skipped without it.
test-clients:
	@xtask/prepare.sh test
	DHOW_KUBECTL="$$(tests/clients/install.sh kubectl)" && export DHOW_KUBECTL="$${DHOW_KUBECTL:-$$(xtask/kubectl.sh)}" && \
		$(CARGO) test --workspace --test e2e --quiet -- kubectl:: && \
		$(CARGO) test --workspace --test e2e --quiet -- --ignored clients::

# The end-to-end tests on a real cluster of this machine; without Go or root it says so and ends well.
test-cluster:
	@xtask/prepare.sh cluster
	tests/cluster/run.sh

# What breaks on a cluster, one thing after the other.
test-faults:
	@xtask/prepare.sh cluster
	RUST_TEST_THREADS=1 tests/cluster/run.sh --ignored faults::

# The sandbox on Debian's own kernel with cgroup v2 only, in a virtual machine that cargo runs the tests in.
GUEST = $(CARGO) --config 'target."cfg(all())".runner = "$(CURDIR)/tests/guest/cgroup2.sh"' test

test-guest:
	@xtask/prepare.sh guest
	$(GUEST) --package runtime --test process
	DHOW_KUBECTL="$$(xtask/kubectl.sh)" $(GUEST) --package dhow --test e2e -- --test-threads 1 sandbox::

test-long:
	@xtask/prepare.sh test
	DHOW_LONG=1 DHOW_KUBECTL="$$(xtask/kubectl.sh)" $(CARGO) test --workspace --release
	@if xtask/prepare.sh guest && tests/guest/cgroup2.sh true; then $(MAKE) test-guest; else echo "skipped: test-guest"; fi

bench:
	@xtask/prepare.sh bench
	$(CARGO) build --release --package dhow
	$(CARGO) build --release --package apiserver --example load
	/usr/bin/python3 bench/run.py

# On the test cluster, beside plain Deployments.
bench-cluster:
	@xtask/prepare.sh cluster
	@xtask/prepare.sh bench
	tests/cluster/run.sh bench

tidy:
	$(CARGO) fmt --all
	$(CARGO) clippy --workspace --all-targets --quiet -- --deny warnings
	$(CARGO) xtask tidy
