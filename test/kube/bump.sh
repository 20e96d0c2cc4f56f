#!/bin/sh
# Rewrites go.mod and go.sum for another release: ./bump.sh v1.36.3 v3.6.8
#
# k8s.io/kubernetes requires its staging modules at v0.0.0 and replaces them by folders of its own
# repository. Replacements of a dependency do not count, so they are repeated here with the released versions.
set -eu
kubernetes=$1
etcd=$2
staging=v0.${kubernetes#v1.}

cd "$(dirname "$0")"
rm -f go.mod go.sum
go mod init github.com/lbproxy/lbproxy/test/kube
upstream=$(go mod download -json "k8s.io/kubernetes@$kubernetes" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')
sed -n 's,^[[:space:]]*\(k8s\.io/[a-z0-9-]*\) => \./staging/.*,\1,p' "$upstream" |
	sed "s,.*,-replace=&=&@$staging," | xargs go mod edit -go=1.26.0
go mod edit -require="k8s.io/kubernetes@$kubernetes" -require="go.etcd.io/etcd/server/v3@$etcd" \
	-tool=k8s.io/kubernetes/cmd/kube-apiserver -tool=go.etcd.io/etcd/server/v3
go mod tidy
