// Package labtest gives tests a laboratory. A test package that uses it has
//
//	func TestMain(m *testing.M) { labtest.Main(m) }
package labtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lbproxy/lbproxy/test/lab"
)

var built struct {
	once sync.Once
	dir  string
	err  error
}

// Main runs the tests, or serves as a part of a laboratory where the process was started for that.
func Main(m *testing.M) {
	lab.Main()
	code := m.Run()
	if built.dir != "" {
		if err := os.RemoveAll(built.dir); err != nil {
			fmt.Fprintln(os.Stderr, "remove built program:", err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// Start builds a world that lives as long as the test. The test is skipped without root, and for no other reason.
func Start(tb testing.TB) *lab.World {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("network namespaces and cgroups need root")
	}
	w, err := lab.New(tb.Context(), lab.Config{})
	require.NoError(tb, err)
	tb.Cleanup(func() {
		if err := w.Close(); err != nil {
			tb.Error(err)
		}
	})
	return w
}

// Build compiles the agent, once for all tests of the process, and returns the path of the program.
func Build(tb testing.TB) string {
	tb.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "lbproxy-build-"); built.err != nil {
			return
		}
		out, err := exec.Command("go", "build", "-o", built.dir, "github.com/lbproxy/lbproxy/cmd/lbproxy").CombinedOutput()
		if err != nil {
			built.err = fmt.Errorf("build lbproxy: %w\n%s", err, out)
		}
	})
	require.NoError(tb, built.err)
	return filepath.Join(built.dir, "lbproxy")
}
