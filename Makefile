# Every target works on a fresh Linux machine with Go, as root and as an ordinary user.
.DEFAULT_GOAL := build
.PHONY: build demo test unit generate lint bench check simulate mutants crash bench-docker bench-reload bench-vm bench-kubernetes bench-hops proto help clean

build: ## build the gateway and the example extensions into bin/
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/sandgate ./gateway
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/ ./drivers/vm/guest-init ./examples/ipam ./examples/tenant-namespace ./examples/route ./examples/device-claim ./examples/guest-dropin ./examples/driver-plugin

demo: build ## a sandbox lives its whole life through two extensions, and what is killed is made good
	scripts/demo.sh

demo-kubernetes: build ## the commands of docs/kubernetes.md, against a control plane of the tests' own
	scripts/kubernetes-demo.sh

test: ## everything, with -race, the time of each lane printed
	scripts/test.sh

unit: ## the tests of every package, without the lanes that need more
	go test ./...

simulate: ## histories of the engine under one seed each: make simulate N=10000 SEED=1 (TRACE=1 prints the steps)
	SIM_N=$(N) SIM_SEED=$(SEED) SIM_TRACE=$(TRACE) go test -timeout 24h -count 1 -v -run 'TestSimulation$$' ./gateway/internal/engine

crash: ## kill the gateway at every moment, and again at every commit of every recovery
	go test -count=1 -timeout 60m -v -run TestKilledAtEveryMoment ./gateway/internal/daemon -crash-all

mutants: ## break the engine on purpose, one fault at a time; the simulation has to find each
	scripts/mutants.sh

generate: ## make the generated code anew
	scripts/proto.sh generate

proto: ## lint the wire, look for breaking changes, and check that generated code is fresh
	scripts/proto.sh check

lint: ## gofmt, vet and golangci-lint (built on demand)
	scripts/lint.sh

bench: ## what the gateway itself costs, beside what is wanted; BENCH_JSON=file writes the rows there too
	go test -c -o bin/bench.test ./gateway/internal/bench
	bin/bench.test -report

bench-docker: ## the rate of creates on Docker, with two extensions, beside the plain client's (as root)
	scripts/install-packages.sh
	go test -count=1 -timeout 20m -v -run TestDockerRate ./gateway/internal/daemon -docker-rate

bench-kubernetes: ## creates in a cluster with three extensions: rate, calls of the API server, memory
	scripts/kube.sh
	go test -count=1 -timeout 30m -v -run TestClusterRate ./gateway/internal/daemon -cluster-rate

bench-vm: ## where the time of a virtual machine goes, from create to ready, and what it costs in memory
	scripts/install-packages.sh
	go test -count=1 -timeout 20m -v -run TestVMFigures ./gateway/internal/daemon -vm-figures

bench-reload: ## how many creates a second there may be while configuration and programs change
	go test -count=1 -timeout 20m -v -run TestLoadWhileEverythingChanges ./gateway/internal/daemon -load-figures

bench-hops: ## what each gateway in a chain of drivers from outside adds to create, get and watch
	go test -count=1 -timeout 20m -v -run TestWhatAHopCosts ./gateway/internal/daemon -hop-figures

check: ## sizes: files over 500 lines, functions over 60
	go test -run TestSizes -v . | grep -v '^---\|^===\|^PASS\|^ok'

clean: ## remove what was built
	rm -rf bin

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  \1\t/' | expand -t 14
