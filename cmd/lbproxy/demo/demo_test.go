package demo

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lbproxy/lbproxy/test/lab/labtest"
)

// demoRun is `lbproxy demo` as a user runs it, with a directory of its own for temporary files by which all
// that belongs to it is found.
type demoRun struct {
	cmd      *exec.Cmd
	tmp      string
	out, err bytes.Buffer
}

func startDemo(t *testing.T, args ...string) *demoRun {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the demo needs root for its network namespaces")
	}
	d := &demoRun{tmp: t.TempDir()}
	d.cmd = exec.Command(labtest.Build(t), append([]string{"demo"}, args...)...)
	d.cmd.Env = append(os.Environ(), "TMPDIR="+d.tmp)
	d.cmd.Stdout, d.cmd.Stderr = &d.out, &d.err
	require.NoError(t, d.cmd.Start())
	t.Cleanup(func() { _ = d.cmd.Process.Kill() })
	return d
}

// requireNothingLeft looks for processes, mounts, cgroups and files. Network namespaces have no names: those
// that no process is in are gone.
func (d *demoRun) requireNothingLeft(t *testing.T) {
	t.Helper()
	environments, err := filepath.Glob("/proc/[0-9]*/environ")
	require.NoError(t, err)
	for _, file := range environments {
		// Many end while this looks at them, and have none then.
		environment, _ := os.ReadFile(file)
		require.NotContains(t, string(environment), "TMPDIR="+d.tmp+"\x00", "process %s is left", file)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	require.NotContains(t, string(mounts), d.tmp)
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[2] == "cgroup2" {
			left, err := filepath.Glob(fmt.Sprintf("%s/*-%d-*", f[1], d.cmd.Process.Pid))
			require.NoError(t, err)
			require.Empty(t, left)
		}
	}
	files, err := os.ReadDir(d.tmp)
	require.NoError(t, err)
	require.Empty(t, files)
}

func TestDemo(t *testing.T) {
	d := startDemo(t, "-o", "json")
	require.NoError(t, d.cmd.Wait(), "%s%s", &d.out, &d.err)
	d.requireNothingLeft(t)
	require.Empty(t, d.err.String())
	var r Report
	require.NoError(t, json.Unmarshal(d.out.Bytes(), &r))
	require.Len(t, r.Runs, 2)
	require.Equal(t, "auto", r.Runs[0].Mode)
	require.Equal(t, "nftables", r.Runs[1].Mode)
	require.Zero(t, r.wrong())
	for _, run := range r.Runs {
		require.Empty(t, run.Missing)
		require.Empty(t, run.Note)
		require.Len(t, run.Cells, 3*len(frontends)-2, "all clients but two of the loopback address")
		for _, c := range run.Cells {
			require.Equal(t, 2*rounds, c.Made)
		}
		require.Len(t, run.Steps, len(steps))
		for _, s := range run.Steps {
			require.Zero(t, s.Failed, s.Step)
			require.Greater(t, s.New, 50, s.Step)
			require.Greater(t, s.Held, 100, s.Step)
		}
	}
}

func TestDemoInterrupted(t *testing.T) {
	for _, after := range []time.Duration{0, time.Second, 4 * time.Second} {
		after += rand.N(time.Second)
		t.Run(after.Truncate(time.Millisecond).String(), func(t *testing.T) {
			t.Parallel()
			d := startDemo(t)
			time.Sleep(after)
			require.NoError(t, d.cmd.Process.Signal(syscall.SIGINT))
			time.Sleep(rand.N(50 * time.Millisecond))
			// A second one must not keep it from cleaning up. It may be gone already.
			_ = d.cmd.Process.Signal(syscall.SIGINT)
			var exit *exec.ExitError
			require.ErrorAs(t, d.cmd.Wait(), &exit)
			require.Equal(t, 1, exit.ExitCode(), "%s", &d.err)
			require.Equal(t, "lbproxy: interrupted; everything the demo made is removed\n", d.err.String())
			d.requireNothingLeft(t)
		})
	}
}

func TestDemoRefusesBadFlags(t *testing.T) {
	for _, args := range [][]string{{"--proxy-mode", "ipvs"}, {"-o", "xml"}, {"extra"}} {
		d := startDemo(t, args...)
		require.Error(t, d.cmd.Wait())
		require.Equal(t, 1, strings.Count(d.err.String(), "\n"), d.err.String())
		require.Empty(t, d.out.String())
	}
}
