# The targets with a comment behind ## are listed by `make help`.
BIN := $(CURDIR)/bin
GO  := go
# The committed BPF objects are clang 14's, byte for byte.
CLANG      := clang-14
LLVM_STRIP := llvm-strip-14
export CGO_ENABLED := 0

.PHONY: help build demo test test-go lint generate check-generate bench kube ci clean prerequisites

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 18

build: ## bin/lbproxy
	$(GO) build -trimpath -o $(BIN)/lbproxy ./cmd/lbproxy

demo: build ## a world in network namespaces, real connections through both datapaths (root)
	$(BIN)/lbproxy demo

prerequisites:
	@test/prerequisites

kube: ## etcd and kube-apiserver for the tests, built from source into bin/kube
	@test/kube/build.sh $(BIN)/kube

test: prerequisites kube ## all tests, with a real API server (root)
	$(MAKE) test-go

test-go:
	LBPROXY_KUBE_BIN=$(BIN)/kube $(GO) test -count=1 -timeout 15m ./...

lint: ## golangci-lint, with the import arrows
	@test -x $(BIN)/golangci-lint && $(BIN)/golangci-lint --version >/dev/null || $(GO) build -C test/lint -o $(BIN)/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	$(BIN)/golangci-lint run ./...

generate: ## compile bpf/ and generate its Go types (clang 14)
	BPF2GO_CC=$(CLANG) BPF2GO_STRIP=$(LLVM_STRIP) $(GO) generate ./pkg/datapath/ebpf

check-generate: generate
	@git diff --exit-code -- pkg/datapath/ebpf || { echo "The generated BPF code is not fresh: run 'make generate' and commit the result."; exit 1; }

bench: ## cold sync and single changes at 1k, 10k and 50k Services (root)
	$(GO) test -run '^$$' -bench 'ColdSync|WarmRestart' -benchtime 5x ./bench
	$(GO) test -run '^$$' -bench 'EndpointChange|Scale|ServiceAddRemove' -benchtime 1s ./bench

ci: ## what the CI runs
	.ci/run

clean: ## remove bin/
	rm -rf $(BIN)
