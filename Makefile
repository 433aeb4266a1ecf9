# The only entry to building, testing and running Orlop; `make help` tells what there is.
#
#   make run                      build everything, boot a node under QEMU, stay until Ctrl-C
#   make run ONESHOT=1            the same, but switch the node off and exit 0 once it has answered
#   make run PORT_BASE=20000      127.0.0.1:20000 apid, 20001 trustd, 20002 API server, 20003 curator
#   make run ACCEL=tcg            the guest accelerator: auto (default), kvm, tcg, tcg-threads
#   make run PROFILE=release      a binary that is built faster and is larger
#
# Long steps show their progress. What was built once is kept: target/ (cargo), ~/.cache/orlop (kernel, packages, peers).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

PROFILE ?= image
ACCEL ?= auto
export ACCEL
LANES ?= 1

# Which commit the binary says it is: the same commit gives the same bytes.
export ORLOP_SHA := $(or $(shell git rev-parse --short HEAD 2>/dev/null),none)
export ORLOP_BUILT := $(shell TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null)
export ORLOP_EPOCH := $(shell git log -1 --format=%ct 2>/dev/null)

triple := x86_64-unknown-linux-gnu
built := target/$(triple)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))/orlop
harness := target/$(triple)/debug
# For the linker, when what ships is built: no tables for unwinding, each function once, and relocations packed, which the
# start of a static program understands from glibc 2.36 on.
lean := -C link-arg=-Wl,-T,$(CURDIR)/.cargo/ship.ld -C link-arg=-Wl,--icf=all
lean += $(shell printf '2.36\n%s\n' "$$(getconf GNU_LIBC_VERSION | cut -d' ' -f2)" | sort -VC && \
    echo -C link-arg=-Wl,-z,pack-relative-relocs)

.DEFAULT_GOAL := help
.PHONY: help run test check fmt lint unit integration build kernel initramfs image qemu bench fuzz openapi clean harness \
    kernel-check image-check
.NOTPARALLEL:

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | awk -F'\t' '{ printf "  make %-12s %s\n", $$1, $$2 }'

run: kernel initramfs harness ## build all, boot a node under QEMU until Ctrl-C (ONESHOT=1 PORT_BASE=n ACCEL=auto|kvm|tcg)
	@.ci/deps qemu
	@ORLOP_KUBECTL=$$(.ci/unpacked tests/kubectl-trixie.lock)/usr/bin/kubectl \
	$(harness)/orlop-qemu run $(if $(filter 1,$(ONESHOT)),--oneshot) $(if $(PORT_BASE),--port-base $(PORT_BASE))

test: ## everything that must hold: check, integration, kernel and image checks, QEMU smoke tests
	@mkdir -p out
	@$(MAKE) check integration kernel-check image-check qemu 2>&1 | tee out/test.log
	@awk '/^test result:/ { passed += $$4; failed += $$6; ignored += $$8 } tolower($$0) ~ /^skipped:/ { skipped[n++] = $$0 } /^retried:/ { retried[m++] = $$0 } \
	    END { printf "\nall together: %d passed, %d failed, %d ignored, %d skipped, %d retried\n", passed, failed, ignored, n, m; \
	    for (i = 0; i < n; i++) print "  " skipped[i]; for (i = 0; i < m; i++) print "  " retried[i] }' out/test.log

check: fmt lint unit ## the fast loop: format, lints, unit tests

fmt: ## is everything formatted?
	@.ci/deps build
	cargo fmt --all --check
	cargo fmt --manifest-path tests/informers/Cargo.toml --check

lint: ## clippy; warnings are errors
	@.ci/deps build
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy -p orlop-qemu --test smoke --test cluster_of_three --test in_guest --test networks --test etcd -- -D warnings

unit: ## unit tests
	@.ci/deps build
	cargo test --workspace --lib --bins

integration: build ## tests on real parts: the real binary, containerd, etcd, network namespaces
	@.ci/deps test
	ORLOP_ETCD=$$(.ci/unpacked tests/etcd.lock)/usr/bin/etcd \
	ORLOP_ETCDS=$$(.ci/etcds) \
	ORLOP_CHRONYD=$$(.ci/unpacked tests/chrony.lock)/usr/sbin/chronyd \
	ORLOP_NTPD=$$(.ci/unpacked tests/ntpsec.lock)/usr/sbin/ntpd \
	ORLOP_KUBECTL=$$(.ci/kubectls) \
	ORLOP=$(CURDIR)/out/orlop cargo test --workspace --exclude orlop-qemu --test '*' -- --show-output
	ORLOP=$(CURDIR)/out/orlop cargo test --manifest-path tests/informers/Cargo.toml --target-dir target/informers -- --show-output

build: ## the static binary, out/orlop (PROFILE=image|release|dev)
	@.ci/deps build
	cargo rustc --profile $(PROFILE) --bin orlop $(if $(filter image,$(PROFILE)),-- $(lean))
	@mkdir -p out
	@cmp -s $(built) out/orlop || cp $(built) out/orlop

kernel: ## out/vmlinuz and out/kernel.config; from the cache when nothing changed
	@.ci/deps kernel
	@kernel/build

initramfs: build ## out/initramfs.img, from out/orlop and distribution packages
	@.ci/deps image
	@if [ out/initramfs.img -nt out/orlop ] && [ -z "$$(find initramfs config -newer out/initramfs.img 2>/dev/null)" ]; \
	    then echo "image: nothing has changed"; else initramfs/build; fi

image: kernel initramfs ## kernel, initramfs and out/orlop.raw, a disk that boots
	@if [ out/orlop.raw -nt out/initramfs.img ] && [ out/orlop.raw -nt out/vmlinuz ]; \
	    then echo "disk: nothing has changed"; else initramfs/disk; fi

kernel-check: kernel
	@kernel/check

image-check: image
	@initramfs/check-reproducible

harness:
	@.ci/deps build
	cargo build -p orlop-qemu --bins

# A machine is busy with one processor, so two programs that start one machine at a time may share two (LANES=2). The
# others start several, and have the processors for themselves.
qemu: image harness ## the QEMU tests (TEST=word runs those whose name has it, LANES=2 two programs side by side)
	@.ci/deps qemu test
	@export ORLOP_ETCD=$$(.ci/unpacked tests/etcd.lock)/usr/bin/etcd; \
	run() { (set -x; cargo test -p orlop-qemu "$$@" -- $(TEST)); }; \
	if [ "$(LANES)" = 2 ]; then \
	    run --test in_guest >out/lane.log 2>&1 & \
	    lane=$$!; failed=; \
	    run --test smoke || failed=yes; \
	    wait $$lane || failed=yes; \
	    cat out/lane.log; \
	    [ -z "$$failed" ]; \
	    run --test cluster_of_three --test networks --test etcd; \
	else \
	    run --test smoke --test cluster_of_three --test in_guest --test networks --test etcd; \
	fi

bench: kernel initramfs harness ## the figures of the README, each beside its reference; out/bench.json
	@.ci/deps qemu bench
	@ORLOP_CHRONYD=$$(.ci/unpacked tests/chrony.lock)/usr/sbin/chronyd \
	ORLOP_ETCD=$$(.ci/unpacked tests/etcd.lock)/usr/bin/etcd $(harness)/figures

fuzz: ## every parser of foreign bytes, SECONDS_EACH (60) seconds each
	@.ci/deps build
	@SECONDS_EACH=$(SECONDS_EACH) FUZZER=$(FUZZER) tests/fuzz/run

# Only when the generation of Kubernetes changes: what it is made from takes a minute to compile.
openapi: ## src/apiserver/schema/definitions.json.gz, the descriptions of Kubernetes' types
	@mkdir -p out
	@cargo run -q --manifest-path tests/openapi/Cargo.toml --target-dir target/openapi >out/definitions.json
	@gzip -9nc out/definitions.json >src/apiserver/schema/definitions.json.gz

clean: ## removes target/ and out/; what ~/.cache/orlop keeps stays
	cargo clean
	rm -rf out tests/fuzz/target tests/fuzz/artifacts
