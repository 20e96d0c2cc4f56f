#!/bin/sh
# Builds etcd and kube-apiserver of the versions in go.mod into a folder: ./build.sh bin
#
# Without a change of go.mod it takes a second or two. kube-apiserver derives what it serves from its own version,
# which a plain build leaves at v0.0.0.
set -eu
mkdir -p "$1"
bin=$(cd "$1" && pwd)

cd "$(dirname "$0")"
export CGO_ENABLED=0
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${version#v1.}
package=k8s.io/component-base/version
go build -o "$bin/etcd" -ldflags '-s -w' go.etcd.io/etcd/server/v3
go build -o "$bin/kube-apiserver" -ldflags "-s -w -X $package.gitVersion=$version \
	-X $package.gitMajor=1 -X $package.gitMinor=${minor%%.*} -X $package.gitTreeState=clean" \
	k8s.io/kubernetes/cmd/kube-apiserver
