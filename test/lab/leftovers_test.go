package lab_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/test/lab"
	"github.com/lbproxy/lbproxy/test/lab/labtest"
)

// addBlackhole makes the current namespace swallow what is sent to these addresses.
func addBlackhole(addrs ...netip.Addr) error {
	for _, a := range addrs {
		bits := a.BitLen()
		r := &netlink.Route{Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, bits)}, Type: unix.RTN_BLACKHOLE}
		if err := netlink.RouteAdd(r); err != nil {
			return fmt.Errorf("add blackhole: %w", err)
		}
	}
	return nil
}

// leftovers is everything a laboratory of one process might leave on the machine.
type leftovers struct {
	Processes  []string
	Namespaces []string
	Cgroups    []string
	Mounts     []string
	Dirs       []string
	OpenFiles  int
}

// findLeftovers looks for what belongs to the process pid, which made laboratories and may be gone.
func findLeftovers(t *testing.T, pid int) leftovers {
	t.Helper()
	mark := fmt.Sprintf("lbproxy-lab-%d-", pid)
	l := leftovers{Processes: descendants(t, mark), Namespaces: namespacesOf(pid)}
	mounts, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, mark) {
			l.Mounts = append(l.Mounts, line)
		}
		if f := strings.Fields(line); f[2] == "cgroup2" {
			found, _ := filepath.Glob(filepath.Join(f[1], mark+"*"))
			l.Cgroups = append(l.Cgroups, found...)
		}
	}
	l.Dirs, _ = filepath.Glob(filepath.Join(os.TempDir(), mark+"*"))
	fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	l.OpenFiles = len(fds)
	return l
}

// descendants lists processes that are parts of the laboratories with this mark: those in their cgroups, and janitors.
func descendants(t *testing.T, mark string) []string {
	t.Helper()
	var found []string
	dirs, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	for _, dir := range dirs {
		cgroup, _ := os.ReadFile(dir + "/cgroup")
		cmdline, _ := os.ReadFile(dir + "/cmdline")
		if stat, err := os.ReadFile(dir + "/stat"); err != nil || strings.Contains(string(stat), ") Z ") {
			continue // it has ended, but init has not noticed
		}
		if strings.Contains(string(cgroup), mark) || strings.Contains(string(cmdline), mark) {
			found = append(found, dir+" "+strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	return found
}

// namespacesOf lists the network namespaces a process holds, by its threads and its files.
func namespacesOf(pid int) []string {
	var found []string
	for _, pattern := range []string{"/proc/%d/task/*/ns/net", "/proc/%d/fd/*"} {
		links, _ := filepath.Glob(fmt.Sprintf(pattern, pid))
		for _, link := range links {
			if ns, err := os.Readlink(link); err == nil && strings.HasPrefix(ns, "net:[") {
				found = append(found, ns)
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

func TestCloseLeavesNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces and cgroups need root")
	}
	before := findLeftovers(t, os.Getpid())
	w, err := lab.New(t.Context(), lab.Config{})
	require.NoError(t, err)
	pod, err := w.AddPod(w.Node, "pod")
	require.NoError(t, err)
	require.NoError(t, pod.Serve("tcp", "0.0.0.0:80", "pod"))
	_, err = w.Node.Start("sleep", "600")
	require.NoError(t, err)
	_, err = w.Node.Load(lab.LoadRequest{Network: "tcp", Targets: []netip.AddrPort{netip.AddrPortFrom(pod.Addr4, 80)}, Workers: 2})
	require.NoError(t, err)

	during := findLeftovers(t, os.Getpid())
	require.Len(t, during.Processes, len(before.Processes)+4, "two workers, a program and the janitor")
	require.Len(t, during.Namespaces, len(before.Namespaces)+5)
	require.Len(t, during.Cgroups, len(before.Cgroups)+1)
	require.Len(t, during.Mounts, len(before.Mounts)+1)

	require.NoError(t, w.Close())
	require.NoError(t, w.Close())
	// The spawner's thread ends a moment after its goroutine.
	require.Eventually(t, func() bool {
		after := findLeftovers(t, os.Getpid())
		after.OpenFiles = before.OpenFiles
		return assertSame(before, after)
	}, 2*time.Second, 10*time.Millisecond)
	runtime.GC()
	require.InDelta(t, before.OpenFiles, findLeftovers(t, os.Getpid()).OpenFiles, 3, "open files")
}

func assertSame(a, b leftovers) bool { return fmt.Sprint(a) == fmt.Sprint(b) }

func TestFailedStartLeavesNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces and cgroups need root")
	}
	before := findLeftovers(t, os.Getpid())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := lab.New(ctx, lab.Config{})
	require.ErrorIs(t, err, context.Canceled)
	require.Eventually(t, func() bool {
		after := findLeftovers(t, os.Getpid())
		after.OpenFiles = before.OpenFiles
		return assertSame(before, after)
	}, 2*time.Second, 10*time.Millisecond)
}

// victim is what TestKilledLaboratory runs in a process of its own.
const victimVariable = "LBPROXY_LAB_TEST_VICTIM"

func TestVictim(t *testing.T) {
	if os.Getenv(victimVariable) == "" {
		t.Skip("only a part of TestKilledLaboratoryLeavesNothing")
	}
	w := labtest.Start(t)
	require.NoError(t, w.Node.Serve("tcp", "0.0.0.0:80", "node"))
	p, err := w.Node.Start("sleep", "600")
	require.NoError(t, err)
	fmt.Println("ready", p.Pid)
	time.Sleep(time.Minute)
}

func TestKilledLaboratoryLeavesNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces and cgroups need root")
	}
	for _, tt := range []struct {
		name    string
		janitor bool
	}{{"with janitor", true}, {"janitor killed first", false}} {
		t.Run(tt.name, func(t *testing.T) {
			cmd, program := startVictim(t)
			during := findLeftovers(t, cmd.Process.Pid)
			require.Len(t, during.Cgroups, 1)
			require.Len(t, during.Mounts, 1)
			require.Len(t, during.Processes, 3, "a worker, a program and the janitor")
			if !tt.janitor {
				killJanitor(t, during.Processes)
			}
			require.NoError(t, cmd.Process.Kill())
			_ = cmd.Wait()
			if !tt.janitor {
				// What somebody still runs in is left alone, so the workers must have ended.
				require.Eventually(t, func() bool { return len(findLeftovers(t, cmd.Process.Pid).Processes) == 0 }, 5*time.Second, 10*time.Millisecond)
				w, err := lab.New(t.Context(), lab.Config{})
				require.NoError(t, err)
				require.NoError(t, w.Close())
			}
			require.Eventually(t, func() bool {
				return assertSame(leftovers{}, findLeftovers(t, cmd.Process.Pid))
			}, 5*time.Second, 10*time.Millisecond)
			requireEnded(t, program)
		})
	}
}

// startVictim returns when the other process has a laboratory, with the pid of a program in it.
func startVictim(t *testing.T) (*exec.Cmd, int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestVictim$", "-test.v")
	cmd.Env = append(os.Environ(), victimVariable+"=1")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	for s := bufio.NewScanner(out); s.Scan(); {
		if pid, ok := strings.CutPrefix(s.Text(), "ready "); ok {
			program, err := strconv.Atoi(pid)
			require.NoError(t, err)
			return cmd, program
		}
	}
	_ = cmd.Process.Kill()
	require.Fail(t, "the other process did not start")
	return nil, 0
}

func killJanitor(t *testing.T, processes []string) {
	t.Helper()
	for _, p := range processes {
		if dir, _, ok := strings.Cut(p, " lbproxy-lab-janitor"); ok {
			pid, err := strconv.Atoi(filepath.Base(dir))
			require.NoError(t, err)
			require.NoError(t, unix.Kill(pid, unix.SIGKILL))
			return
		}
	}
	require.Fail(t, "no janitor", "%v", processes)
}

func requireEnded(t *testing.T, pid int) {
	t.Helper()
	require.Eventually(t, func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	}, 5*time.Second, 10*time.Millisecond, "process %d runs", pid)
}
