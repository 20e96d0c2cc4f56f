package kubetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// BinVariable is the environment variable that names the folder with etcd and kube-apiserver.
const BinVariable = "LBPROXY_KUBE_BIN"

// Programs returns the folder with etcd and kube-apiserver. Without the variable the test is skipped; with it, the
// programs have to be there.
func Programs(tb testing.TB) string {
	tb.Helper()
	dir := os.Getenv(BinVariable)
	if dir == "" {
		tb.Skipf("%s is not set: `make kube` builds etcd and kube-apiserver into bin/kube, and `make test` does that and sets it", BinVariable)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		tb.Fatalf("find programs: %v", err)
	}
	for _, program := range []string{etcdProgram, apiServerProgram} {
		if _, err := exec.LookPath(filepath.Join(dir, program)); err != nil {
			tb.Fatalf("find programs in %s: %v", BinVariable, err)
		}
	}
	return dir
}
