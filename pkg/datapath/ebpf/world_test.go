package ebpf

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

const workerEnv = "LBPROXY_EBPF_TEST"

func TestMain(m *testing.M) {
	switch os.Getenv(workerEnv) {
	case "worker":
		workerMain()
	case "agent":
		agentMain()
	}
	os.Exit(m.Run())
}

// world is a network namespace, a cgroup, a bpf file system and a worker process of one test.
type world struct {
	tb     testing.TB
	Cgroup string
	BPFFS  string
	in     *json.Encoder
	out    *json.Decoder
}

var worlds atomic.Int32

func newWorld(tb testing.TB) *world {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: attaches BPF programs in a cgroup of its own")
	}
	runtime.LockOSThread() // never unlocked: the thread, and the namespace, end with the test
	require.NoError(tb, unix.Unshare(unix.CLONE_NEWNET))
	root, err := findCgroupRoot()
	require.NoError(tb, err)
	w := &world{tb: tb, BPFFS: tb.TempDir()}
	require.NoError(tb, MountBPFFS(w.BPFFS))
	tb.Cleanup(func() { require.NoError(tb, unix.Unmount(w.BPFFS, unix.MNT_DETACH)) })
	w.Cgroup = filepath.Join(root, fmt.Sprintf("lbproxy-ebpf-test-%d-%d", os.Getpid(), worlds.Add(1)))
	require.NoError(tb, os.Mkdir(w.Cgroup, 0o755))
	tb.Cleanup(func() { require.NoError(tb, os.Remove(w.Cgroup)) })
	return w
}

// options are those of an instance pinned below the world's bpf file system.
func (w *world) options(name string) Options {
	return Options{CgroupRoot: w.Cgroup, PinDir: filepath.Join(w.BPFFS, name), Log: slog.New(slog.DiscardHandler)}
}

// start runs the worker: in the world's cgroup and network namespace.
func (w *world) start() { w.startIn(0) }

// startPod runs the worker like a pod, in a network namespace of its own.
func (w *world) startPod() { w.startIn(unix.CLONE_NEWNET) }

func (w *world) startIn(namespaces uintptr) {
	w.tb.Helper()
	cg, err := os.Open(w.Cgroup)
	require.NoError(w.tb, err)
	defer cg.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), workerEnv+"=worker")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		UseCgroupFD: true, CgroupFD: int(cg.Fd()), Cloneflags: namespaces, Pdeathsig: unix.SIGKILL,
	}
	in, err := cmd.StdinPipe()
	require.NoError(w.tb, err)
	out, err := cmd.StdoutPipe()
	require.NoError(w.tb, err)
	require.NoError(w.tb, cmd.Start())
	w.tb.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	w.in, w.out = json.NewEncoder(in), json.NewDecoder(out)
}

func (w *world) do(r request) answer {
	w.tb.Helper()
	require.NoError(w.tb, w.in.Encode(r))
	var a answer
	require.NoError(w.tb, w.out.Decode(&a))
	return a
}

func (w *world) serve(addrs ...string) {
	w.tb.Helper()
	for _, a := range addrs {
		require.Empty(w.tb, w.do(request{Do: "serve", Addr: a}).Call)
	}
}

func (w *world) open(o Options) *Datapath {
	w.tb.Helper()
	return w.openSized(o, smallest)
}

func (w *world) openSized(o Options, least sizes) *Datapath {
	w.tb.Helper()
	d, err := open(o, least)
	require.NoError(w.tb, err)
	w.tb.Cleanup(func() { require.NoError(w.tb, d.Close()) })
	return d
}

// full is an update of the whole world.
func full(services ...*datapath.Service) datapath.Update {
	return datapath.Update{Full: true, Services: services, LocalPods: &datapath.LocalPods{}}
}

func changed(services ...*datapath.Service) datapath.Update {
	return datapath.Update{Services: services}
}

func apply(tb testing.TB, d *Datapath, u datapath.Update) {
	tb.Helper()
	require.NoError(tb, d.Apply(context.Background(), u))
}

func backends(addrs ...string) []datapath.Backend {
	var set []datapath.Backend
	for _, a := range addrs {
		set = append(set, datapath.Backend{Addr: netip.MustParseAddrPort(a)})
	}
	slices.SortFunc(set, datapath.Backend.Compare)
	return set
}

// port is a TCP or UDP port with one frontend and one set. An address is given as ADDRESS:PORT/PROTOCOL.
func port(frontendAddr string, addrs ...string) datapath.Port {
	addr, proto, _ := strings.Cut(frontendAddr, "/")
	p := datapath.Port{Name: "p", Protocol: datapath.TCP, Sets: [][]datapath.Backend{backends(addrs...)}}
	if proto == "UDP" {
		p.Protocol = datapath.UDP
	}
	a := netip.MustParseAddrPort(addr)
	p.IPv6 = a.Addr().Is6()
	p.Frontends = []datapath.Frontend{{IP: a.Addr(), Port: a.Port()}}
	return p
}

func svc(name string, ports ...datapath.Port) *datapath.Service {
	return &datapath.Service{Name: datapath.Name{Namespace: "test", Name: name}, Ports: ports}
}

func dump(tb testing.TB, o Options) string {
	tb.Helper()
	var b strings.Builder
	require.NoError(tb, Dump(o, &b))
	return b.String()
}

// sysConnect connects to a raw address, for those the unix package has no type for.
func sysConnect(fd int, raw []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&raw[0])), uintptr(len(raw)))
	if errno != 0 {
		return fmt.Errorf("connect: %w", errno)
	}
	return nil
}
