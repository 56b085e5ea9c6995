# Everything that is built, checked or run from this repository starts here.
# "make" alone lists the targets.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS   += --no-print-directory
.DEFAULT_GOAL := help

# The go command records the commit, which "twilld --version" prints after the release
# (internal/version/version.go). If there is no git, or git refuses the tree, builds
# continue without it.
BUILDVCS := $(shell git rev-parse HEAD >/dev/null 2>&1 && echo auto || echo false)
export GOFLAGS := $(strip $(shell go env GOFLAGS) -buildvcs=$(BUILDVCS))

# How a shipped binary is built: static, and with the same bytes wherever it is built.
# Without gRPC's tracing, which is never used, the linker can leave methods out.
GOBUILD := CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -tags grpcnotrace

# Architectures that must build besides the host's; GOARM=6 is the oldest ARM
# whose Go atomics need no kernel help.
CROSS := arm arm64 mips riscv64 386

# Packages whose tests run under an emulated CPU: those that lay out kernel
# structures or packet bytes. Tests that need privileges skip themselves there.
PORTABLE := ./encap ./internal/backend/... ./tun/... ./fastpath/... ./lease ./lease/internal/... ./lease/static ./metrics/...

# One Go package pattern for "all but the tests that need namespaces".
UNIT = $$(go list ./... | grep -v /internal/lab/e2e)

FUZZTIME ?= 20s
GOARCH   := $(shell go env GOARCH)
MODULES  := . tools tools/cni tools/deploy tools/etcd tools/kubernetes tools/release
ifeq ($(GOARCH),amd64)
MODULES  += bench/peers/flannel
endif

# Kubernetes' programs take minutes to build, so each is built once per version.
KUBE          := bin/peers/kubernetes
KUBE_PROGRAMS := kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl
# The tests that run them.
KUBE_TESTS    := ^TestKube
KUBE_VERSION  := $(shell awk '$$1 == "k8s.io/kubernetes" { print $$2 }' tools/kubernetes/go.mod)

STEP   := scripts/step
REPORT := bin/tools/testreport
# Without root, tests that need it skip; as root a skip is a failure.
SKIPS  := $(if $(filter 0,$(shell id -u)),,-skips)
GUEST  := $(if $(SKIPS),,guest)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build what is in cmd/ to bin, static
	$(GOBUILD) -o bin/ $$(go list ./cmd/... | grep -v /twill$$)
	$(GOBUILD),$(TWILL) $(SMALL) -o bin/ ./cmd/twill

# Where the programs below go.
BIN ?= bin

# What a small daemon is built without: the embedded etcd, Kubernetes, and the BPF programs
# of the kernel path. net/http needs no HTTP/2, since gRPC brings its own.
LITE  := noembed,nokube,nobpf,nethttpomithttp2
BOARD := $(LITE),noetcd
TWILL := nethttpomithttp2

# twill runs for a moment and forwards nothing: without inlining it is a fourteenth smaller.
# A daemon would need a megabyte more of memory.
SMALL := -gcflags=all=-l

.PHONY: build-lite
build-lite: ## build bin/twilld-lite: without --embedded-etcd, Kubernetes and the kernel path
	$(GOBUILD),$(LITE) -o $(BIN)/twilld-lite ./cmd/twilld

.PHONY: build-board
build-board: ## build bin/twilld-board, the smallest daemon: as lite, and with leases in a file only
	$(GOBUILD),$(BOARD) -o $(BIN)/twilld-board ./cmd/twilld

# A test builds these in a directory of its own, and compares their sizes with docs/dependencies.md.
.PHONY: build-bounded
build-bounded: build-lite build-board # all programs whose size has a bound
	$(GOBUILD),$(TWILL) $(SMALL) -o $(BIN)/ ./cmd/twill

.PHONY: peers
peers: ## build bin/peers/floor, stock flanneld, and stock flannel's udp backend alone (amd64, cgo)
	$(GOBUILD) -o bin/peers/ ./bench/floor
ifneq ($(filter bench/peers/flannel,$(MODULES)),)
	CGO_ENABLED=1 go build -C bench/peers/flannel -trimpath -o ../../../bin/peers/flannel-udp .
	CGO_ENABLED=1 go build -C bench/peers/flannel -trimpath -o ../../../bin/peers/flanneld github.com/flannel-io/flannel
else
	@echo "peers: stock flannel's udp backend exists for amd64 only; nothing built"
endif

.PHONY: etcd
etcd: ## build bin/peers/etcd and etcdctl, which tests run
	cd tools/etcd && $(GOBUILD) -o ../../bin/peers/etcd go.etcd.io/etcd/server/v3
	cd tools/etcd && $(GOBUILD) -o ../../bin/peers/etcdctl go.etcd.io/etcd/etcdctl/v3

.PHONY: cni
cni: ## build bin/peers/cni, the CNI plugins and cnitool that tests run
	cd tools/cni && $(GOBUILD) -o ../../bin/peers/cni/ tool

# The image's name, and Go's names of the architectures it is built for.
IMAGE       ?= localhost/twill:dev
IMAGE_ARCHS ?= amd64 arm64 arm riscv64
# The daemon in the image has no etcd of its own.
GOIMAGE     := GOOS=linux GOARM=7 $(GOBUILD),noembed
RELEASE     := $(shell sed -n 's/^const Release = "\(.*\)"$$/\1/p' internal/version/version.go)
# The timestamp of all files in the image: the commit's, unless the caller sets another.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)

.PHONY: image
image: $(addprefix image-programs-,$(IMAGE_ARCHS)) ## make the container image: archives in bin/image, no container engine needed
	go run -C tools ./image -dir $(CURDIR)/bin/image -licence $(CURDIR)/LICENSE -name $(IMAGE) \
		-epoch $(SOURCE_DATE_EPOCH) -version $(RELEASE) $(IMAGE_ARCHS)

.PHONY: image-host
image-host: ## the same for this machine's architecture alone, which tests run
	@$(MAKE) image IMAGE_ARCHS=$(GOARCH)

image-programs-%: image-packages-%
	GOARCH=$* $(GOIMAGE) -o bin/image/$*/programs/ ./cmd/twilld ./cmd/twill ./cmd/flannel-cni ./cmd/install-conf
	cd tools/cni && GOARCH=$* $(GOIMAGE) -o ../../bin/image/$*/programs/ \
		$(addprefix github.com/containernetworking/plugins/plugins/,main/bridge ipam/host-local main/loopback meta/portmap)

image-packages-%:
	@scripts/fetch-image.sh bin/image/$*/debian $*

.PHONY: kubernetes
kubernetes: $(addprefix $(KUBE)/,$(KUBE_PROGRAMS)) ## build the Kubernetes programs that tests run to bin/peers/kubernetes, 8 min

$(KUBE)/%: tools/kubernetes/go.mod
	cd tools/kubernetes && $(GOBUILD) -ldflags='-s -w -X k8s.io/component-base/version.gitVersion=$(KUBE_VERSION)' \
		-o ../../$@ k8s.io/kubernetes/cmd/$*

.PHONY: etcd-old
etcd-old: ## fetch this Debian's etcd, an old one that tests run, to bin/peers/etcd-old
	scripts/fetch-program.sh bin/peers/etcd-old etcd-server etcd

.PHONY: prometheus
prometheus: ## fetch this Debian's Prometheus and promtool, which tests run, to bin/peers/prometheus
	scripts/fetch-program.sh bin/peers/prometheus prometheus prometheus promtool

.PHONY: guest
guest: ## fetch the kernels that tests boot in qemu to bin/peers/guest
	@for version in 5.10 6.1 6.12 newest; do scripts/fetch-guest.sh bin/peers/guest $$version $(GOARCH); done
	@for arch in arm64 arm; do scripts/fetch-guest.sh bin/peers/guest 6.1 $$arch; done

.PHONY: docker
docker: ## fetch the dockerd that tests run to bin/peers/docker
	scripts/fetch-docker.sh bin/peers/docker

.PHONY: peers-bench
peers-bench: ## build bin/peers/wireguard-go and nebula, which only the laboratory runs
	cd bench/peers/tools && $(GOBUILD) -o ../../../bin/peers/wireguard-go golang.zx2c4.com/wireguard
	cd bench/peers/tools && $(GOBUILD) -o ../../../bin/peers/ github.com/slackhq/nebula/cmd/nebula github.com/slackhq/nebula/cmd/nebula-cert

# The stages of "make test". On two processors three at a time keep both busy, since
# the tests in namespaces spend much of their time waiting. Each has its log in bin/log.
STAGES := build fetch kube-build image netns kubernetes unit cross lint

.PHONY: test
test: needs-root ## everything, from a fresh clone, as root: tools, lint, unit, cross, namespaces, Kubernetes
	@$(STEP) packages "Debian packages that the tests need" scripts/install-deps.sh
	@$(MAKE) --jobs=3 --keep-going $(STAGES:%=stage-%)

# A stage is a separate make: it does not share this one's jobs.
STAGE := @MAKEFLAGS=--no-print-directory $(STEP)

.PHONY: $(STAGES:%=stage-%)
stage-build: $(REPORT)
	$(STAGE) build "build" $(MAKE) build peers cni etcd
stage-fetch: # one after the other: APT locks its lists
	$(STAGE) fetch "old etcd, kernels, dockerd and Prometheus" $(MAKE) etcd-old guest docker prometheus image-packages-$(GOARCH)
stage-image: stage-build stage-fetch # both of the next stages run it
	$(STAGE) image "image" $(MAKE) image-host
stage-netns: stage-image
	$(STAGE) netns "tests in network namespaces" $(MAKE) test-netns
stage-kube-build: stage-build # minutes from an empty cache
	$(STAGE) kube-build "build of Kubernetes" $(MAKE) kubernetes
stage-kubernetes: stage-kube-build stage-image
	$(STAGE) kubernetes "tests with Kubernetes" $(MAKE) test-kubernetes
stage-unit: stage-build stage-fetch
	$(STAGE) unit "unit tests with the race detector" $(MAKE) test-unit
stage-cross: $(REPORT)
	$(STAGE) cross "other architectures" $(MAKE) test-cross
stage-lint:
	$(STAGE) lint "lint" $(MAKE) lint

.PHONY: test-unit
test-unit: $(REPORT) etcd prometheus $(GUEST) ## unit tests with -race; without root some skip
	CGO_ENABLED=1 go test -race -p 4 -json -skip '$(KUBE_TESTS)' $(UNIT) | $(REPORT) $(SKIPS)
	@for m in $(filter-out .,$(MODULES)); do \
		echo "go test -C $$m ./..."; go test -C $$m -json ./... | $(REPORT); done

.PHONY: test-netns
test-netns: needs-root $(REPORT) cni etcd-old guest docker prometheus image-host ## tests of the real binaries in network namespaces; root
	go test -count=1 -parallel 4 -timeout 30m -json -skip '$(KUBE_TESTS)' ./internal/lab/e2e/... | $(REPORT) -each

.PHONY: test-kubernetes
test-kubernetes: needs-root $(REPORT) peers etcd kubernetes docker image-host ## tests with a real control plane and real kubelets, in network namespaces; root
	go test -count=1 -timeout 30m -p 1 -json -run '$(KUBE_TESTS)' ./lease/kube ./internal/lab/e2e | $(REPORT) -each

.PHONY: test-cross
test-cross: $(REPORT) ## build for other architectures; packet code under qemu for arm and arm64
	@for arch in $(CROSS); do \
		echo "GOARCH=$$arch go build, go vet"; \
		CGO_ENABLED=0 GOARCH=$$arch GOARM=6 go build ./...; \
		CGO_ENABLED=0 GOARCH=$$arch GOARM=6 go vet ./...; done
	@for cpu in arm:qemu-arm-static arm64:qemu-aarch64-static; do \
		echo "GOARCH=$${cpu%:*} go test -exec $${cpu#*:}"; \
		CGO_ENABLED=0 GOARCH=$${cpu%:*} GOARM=6 go test -json -exec "$(CURDIR)/scripts/unprivileged $${cpu#*:}" $(PORTABLE) \
		| $(REPORT) -skips; done

.PHONY: lint
lint: ## gofmt, go vet, staticcheck, tidy modules, import directions, log keys, vulnerabilities
	@scripts/lint.sh $(filter-out tools/deploy,$(MODULES)) # to check that one, staticcheck would read all of Helm

.PHONY: generate
generate: ## build the BPF programs that are committed, from C; needs clang and libbpf-dev
	go generate ./internal/backend/udp/kernelpath

.PHONY: reference
reference: ## write docs/reference.md and docs/findings.md, from the code
	@go run ./internal/reference docs

.PHONY: docs
docs: reference ## make a website of the pages in bin/site, with every link checked
	@go run -C tools ./site $(CURDIR) $(CURDIR)/bin/site

.PHONY: imports
imports: ## draw the imports of the packages in ARCHITECTURE.md, from the code
	@go run -C tools ./imports draw $(CURDIR)/ARCHITECTURE.md

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZTIME (20s)
	@scripts/fuzz.sh $(FUZZTIME)

SOAKTIME ?= 2h
E2E      := go test -count=1 -timeout 0 -v ./internal/lab/e2e

.PHONY: soak
soak: needs-root etcd ## traffic and faults for SOAKTIME (2h); ends with a table of losses and resources; root
	$(E2E) -run '^TestNodesEndALifeOfFaultsAsTheyBeganIt$$' -soak $(SOAKTIME)

# How often each kind of restart is measured.
RESTARTS ?= 10

.PHONY: restarts
restarts: needs-root ## measure what restarts lose and how long nothing arrives, of pings (to bench/results/tmp) and of TCP; root, a quiet machine
	@mkdir -p bench/results/tmp
	PINGS_DIR=$(CURDIR)/bench/results/tmp $(E2E) -run '^$$' -bench '^BenchmarkRestartUnder' -benchtime $(RESTARTS)x

.PHONY: board-memory
board-memory: needs-root guest ## what each build of the daemon takes of an ARM board with 128 MiB, in a guest; root
	GOARCH=arm GOARM=6 $(GOBUILD) -o bin/arm/ ./cmd/twilld
	@GOARCH=arm GOARM=6 $(MAKE) BIN=bin/arm build-lite build-board
	$(E2E) -run '^$$' -bench '^BenchmarkMemoryOfABoard$$' -benchtime 1x

.PHONY: demo
demo: build ## two hosts and their pods in namespaces: twill, its floor and kernel VXLAN in one table; root
	@$(GOBUILD) -o bin/peers/ ./bench/floor
	@bin/twill-lab demo

.PHONY: tour
tour: build ## one packet from pod to pod, each step explained with its tables and bytes; root
	@bin/twill-lab tour

# Packages with benchmarks of single functions.
BENCHED := ./encap ./fastpath
RESULTS := bench/results

.PHONY: bench
bench: needs-root build peers peers-bench ## the laboratory, 25 min: figures to bench/results and docs/performance.md; root, a quiet machine
	@mkdir -p $(RESULTS)
	go test -run '^$$' -bench . -benchmem -benchtime 100ms -count 5 $(BENCHED) | tee $(RESULTS)/micro.txt
	bin/twill-lab bench --micro $(RESULTS)/micro.txt --out $(RESULTS) --page docs/performance.md

.PHONY: bench-quick
bench-quick: needs-root build peers ## the same in three minutes, with fewer paths and loads, on the terminal only; root
	@bin/twill-lab bench --quick

.PHONY: bench-gate
bench-gate: needs-root build ## compare the daemon with another revision's under load, in the same rounds: make bench-gate BASE=main; root
	@scripts/bench-gate.sh "$(BASE)"

.PHONY: bench-compare
bench-compare: ## compare Go benchmarks with another revision: make bench-compare BASE=main
	@scripts/bench-compare.sh "$(BASE)" $(BENCHED)

# Architectures of a release; all of them if empty: make release ARCHES="amd64 arm64".
ARCHES ?=

.PHONY: release
release: ## build the release of this commit into dist: archives for ten architectures, SBOMs, SHA256SUMS
	@scripts/release.sh dist $(ARCHES)

.PHONY: release-check
release-check: release ## build it a second time elsewhere, compare the bytes, run every program
	@scripts/release-check.sh dist $(ARCHES)

.PHONY: packages
packages: release ## make deb and rpm packages of the release in dist, for all ARCHES
	@scripts/packages.sh dist $(ARCHES)

print-%: # the value of a variable, for scripts
	@echo "$($*)"

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist

.PHONY: needs-root
needs-root:
	@if [ "$$(id -u)" != 0 ]; then \
		echo "this creates network namespaces and TUN devices, which needs root: run it with sudo, or run 'make test-unit', which does not" >&2; \
		exit 1; fi

$(REPORT): $(wildcard tools/testreport/*.go) tools/go.mod
	go build -C tools -o ../$@ ./testreport
