package ebpf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

func services(n, endpoints int) []*datapath.Service {
	list := make([]*datapath.Service, n)
	for i := range list {
		list[i] = numbered(i, 0, endpoints)
	}
	return list
}

// numbered is Service i with endpoints whose addresses depend on version.
func numbered(i, version, endpoints int) *datapath.Service {
	p := datapath.Port{Protocol: datapath.TCP, Sets: make([][]datapath.Backend, 1)}
	for e := range endpoints {
		a := netip.AddrFrom4([4]byte{10, byte(128 + i>>16), byte(i >> 8), byte(i)})
		p.Sets[0] = append(p.Sets[0], datapath.Backend{Addr: netip.AddrPortFrom(a, uint16(1000+version*100+e))})
	}
	ip := netip.AddrFrom4([4]byte{10, byte(96 + i>>16), byte(i >> 8), byte(i)})
	p.Frontends = []datapath.Frontend{{IP: ip, Port: 80}}
	return &datapath.Service{Name: datapath.Name{Namespace: "n", Name: fmt.Sprint(i)}, Ports: []datapath.Port{p}}
}

func TestRestartWritesNothing(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.serve("127.0.0.2:8080")
	o := w.options("lbproxy")
	world := append(services(3000, 5),
		svc("web", port("10.0.0.1:80/TCP", "127.0.0.2:8080"), port("[fd00::1]:80/TCP", "[::1]:8081"),
			port("10.0.0.1:80/UDP", "127.0.0.2:8080", "127.0.0.3:8080")),
		svc("empty", port("10.0.0.2:80/TCP")))

	d := w.open(o)
	apply(t, d, full(world...))
	require.Positive(t, d.Stats().Writes)
	before := dump(t, o)
	status, err := ReadStatus(o)
	require.NoError(t, err)
	require.NoError(t, d.Close())
	require.Equal(t, "127.0.0.2:8080", w.do(request{Do: "tcp", Addr: "10.0.0.1:80"}).From, "served without an agent")

	d = w.open(o)
	require.Equal(t, "127.0.0.2:8080", w.do(request{Do: "tcp", Addr: "10.0.0.1:80"}).From, "served before the first update")
	apply(t, d, full(world...))
	require.Equal(t, datapath.Stats{Services: 3002}, d.Stats())
	require.Equal(t, before, dump(t, o))
	after, err := ReadStatus(o)
	require.NoError(t, err)
	require.Equal(t, status.Hooks, after.Hooks)

	// What changed while nobody ran is all that is written: one set (5 backends and a word) and a frontend less.
	require.NoError(t, d.Close())
	d = w.open(o)
	world[7] = numbered(7, 1, 5)
	apply(t, d, full(append(world[:8:8], world[9:]...)...))
	require.EqualValues(t, 7, d.Stats().Writes)
	require.NotContains(t, dump(t, o), "10.96.0.8:80/TCP")
}

func TestDeltaAndFullRemoval(t *testing.T) {
	w := newWorld(t)
	o := w.options("lbproxy")
	d := w.open(o)
	a, b := svc("a", port("10.0.0.1:80/TCP", "10.1.0.1:80", "10.1.0.2:80")), svc("b", port("10.0.0.2:80/UDP", "10.1.0.3:80"))
	apply(t, d, full(a, b))
	const dumpA, dumpB = "10.0.0.1:80/TCP -> 10.1.0.1:80 10.1.0.2:80\n", "10.0.0.2:80/UDP -> 10.1.0.3:80\n"
	require.Equal(t, dumpA+dumpB, dump(t, o))

	apply(t, d, datapath.Update{Removed: []datapath.Name{a.Name, {Namespace: "no", Name: "such"}}})
	require.Equal(t, dumpB, dump(t, o))
	require.Equal(t, 1, d.Stats().Services)
	apply(t, d, full(a))
	require.Equal(t, dumpA, dump(t, o))

	// An address moves from one Service to another in one update, whatever their order.
	moved := svc("c", port("10.0.0.1:80/TCP", "10.1.0.9:80"))
	apply(t, d, datapath.Update{Services: []*datapath.Service{moved}, Removed: []datapath.Name{a.Name}})
	require.Equal(t, "10.0.0.1:80/TCP -> 10.1.0.9:80\n", dump(t, o))
	apply(t, d, datapath.Update{Services: []*datapath.Service{svc("c", port("10.0.0.7:80/TCP", "10.1.0.9:80")), a}})
	require.Equal(t, dumpA+"10.0.0.7:80/TCP -> 10.1.0.9:80\n", dump(t, o))
	apply(t, d, full())
	require.Empty(t, dump(t, o))
}

func TestServiceErrorBlocksNobody(t *testing.T) {
	w := newWorld(t)
	o := w.options("lbproxy")
	d := w.open(o)
	good, bad := svc("good", port("10.0.0.1:80/TCP", "10.1.0.1:80")), svc("bad", port("10.0.0.2:80/TCP", "10.1.0.2:80"))
	apply(t, d, full(good, bad))
	want := dump(t, o)

	broken := svc("bad", port("10.0.0.2:80/TCP", "[fd00::1]:80"))
	for range 2 {
		err := d.Apply(context.Background(), full(good, broken, svc("new", port("10.0.0.3:80/TCP", "10.1.0.3:80"))))
		var fault *datapath.ServiceError
		require.ErrorAs(t, err, &fault)
		require.Equal(t, "test/bad", fault.Service.String())
		require.Equal(t, want+"10.0.0.3:80/TCP -> 10.1.0.3:80\n", dump(t, o), "the last good state stays")
		// Also for a new process, which does not know whose that state is.
		require.NoError(t, d.Close())
		d = w.open(o)
	}
}

// TestSwitchUnderLoad: while connections are made, sets flip, grow, and all maps are replaced; none fails.
func TestSwitchUnderLoad(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.serve("127.0.0.2:8080", "127.0.0.3:8080", "127.0.0.4:8080", "127.0.0.5:8080")
	o := w.options("lbproxy")
	least := sizes{frontends4: 16, frontends6: 4, sets: 16, backends: 64}
	d := w.openSized(o, least)
	one := svc("web", port("10.0.0.1:80/TCP", "127.0.0.2:8080", "127.0.0.3:8080"))
	two := svc("web", port("10.0.0.1:80/TCP", "127.0.0.4:8080", "127.0.0.5:8080"))
	apply(t, d, full(one))
	require.Empty(t, w.do(request{Do: "storm", Addr: "10.0.0.1:80"}).Call)
	start, before := time.Now(), d.maps.sizes()
	for i := 0; time.Since(start) < 3*time.Second; i++ {
		if i%2 == 0 {
			apply(t, d, changed(two))
		} else {
			apply(t, d, changed(one))
		}
		if i%21 == 20 { // more Services come, and maps must grow for them; odd, so that it happens on either set
			n := i / 21 * 300
			apply(t, d, changed(services(n+300, 2)[n:]...))
		}
		if i%100 == 99 { // the agent restarts
			require.NoError(t, d.Close())
			d = w.openSized(o, least)
			apply(t, d, full(append(services((i/21+1)*300, 2), one)...))
		}
	}
	a := w.do(request{Do: "stop"})
	require.Empty(t, a.Failed)
	require.Greater(t, a.Done, 1000)
	require.Len(t, a.Servers, 4)
	require.Greater(t, d.maps.sizes().backends, before.backends)
	t.Logf("%d connects, no failure, from %+v to %+v", a.Done, before, d.maps.sizes())
}

func TestGrowKeepsSockets(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.serve("127.0.0.2:8080", "127.0.0.3:8080")
	o := w.options("lbproxy")
	d := w.openSized(o, sizes{frontends4: 16, frontends6: 4, sets: 16, backends: 64})
	web := svc("dns", port("10.0.0.1:53/UDP", "127.0.0.2:8080", "127.0.0.3:8080"))
	apply(t, d, full(web))
	first := w.do(request{Do: "send", Addr: "10.0.0.1:53", Socket: "s"}).From
	before := d.maps.sizes()
	apply(t, d, changed(services(2000, 3)...))
	require.NotEqual(t, before, d.maps.sizes())
	for range 20 {
		a := w.do(request{Do: "send", Addr: "10.0.0.1:53", Socket: "s"})
		require.Equal(t, first, a.From)
		require.Equal(t, "10.0.0.1:53", a.Source)
	}
	entries, err := os.ReadDir(o.PinDir)
	require.NoError(t, err)
	require.Len(t, entries, len(hooks)+2, "links, maps and one generation: %v", entries)
	// A new process finds everything in the new maps.
	want := dump(t, o)
	require.NoError(t, d.Close())
	d = w.open(o)
	apply(t, d, full(append(services(2000, 3), web)...))
	require.Zero(t, d.Stats().Writes)
	require.Equal(t, want, dump(t, o))
}

func TestCleanup(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.serve("127.0.0.2:8080")
	o := w.options("lbproxy")
	require.NoError(t, Cleanup(o), "nothing there")
	d := w.open(o)
	apply(t, d, full(svc("web", port("10.0.0.1:80/TCP", "127.0.0.2:8080"))))
	require.Equal(t, "127.0.0.2:8080", w.do(request{Do: "tcp", Addr: "10.0.0.1:80"}).From)
	require.ErrorContains(t, Cleanup(o), "running instance")
	_, err := Open(o)
	require.ErrorContains(t, err, "running instance")
	require.False(t, errors.Is(err, ErrNotSupported))

	require.NoError(t, d.Close())
	require.NoError(t, Cleanup(o))
	require.NoError(t, Cleanup(o))
	require.NoDirExists(t, o.PinDir)
	require.Equal(t, int(unix.ENETUNREACH), w.do(request{Do: "tcp", Addr: "10.0.0.1:80"}).Errno)
	require.Empty(t, dump(t, o))
	children, err := filepath.Glob(filepath.Join(w.Cgroup, "*", "cgroup.procs"))
	require.NoError(t, err)
	require.Empty(t, children, "the cgroup for trying hooks is gone")
}

func TestTwoInstances(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.serve("127.0.0.2:8080", "127.0.0.3:8080")
	one, two := w.open(w.options("lbproxy")), w.open(w.options("lbproxy-two"))
	apply(t, one, full(svc("a", port("10.0.0.1:80/TCP", "127.0.0.2:8080"))))
	apply(t, two, full(svc("b", port("10.0.0.2:80/TCP", "127.0.0.3:8080"), port("10.0.0.2:80/UDP", "127.0.0.3:8080"))))
	ask := func(addr string) string {
		a := w.do(request{Do: "tcp", Addr: addr})
		if a.From != "" {
			require.Equal(t, addr, a.Peer)
		}
		return a.From
	}
	require.Equal(t, "127.0.0.2:8080", ask("10.0.0.1:80"))
	require.Equal(t, "127.0.0.3:8080", ask("10.0.0.2:80"))
	require.NoError(t, one.Close())
	require.NoError(t, Cleanup(w.options("lbproxy")))
	require.Empty(t, ask("10.0.0.1:80"))
	require.Equal(t, "127.0.0.3:8080", ask("10.0.0.2:80"))
}

// TestOtherLayout: maps of another layout serve until ours are complete, then go.
func TestOtherLayout(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.serve("127.0.0.2:8080", "127.0.0.3:8080")
	o := w.options("lbproxy")
	d := w.open(o)
	apply(t, d, full(svc("web", port("10.0.0.1:80/TCP", "127.0.0.2:8080"))))
	require.NoError(t, d.Close())
	other := generation{layoutVersion + 1, 1}.String()
	require.NoError(t, os.Rename(filepath.Join(o.PinDir, generation{layoutVersion, 1}.String()), filepath.Join(o.PinDir, other)))
	require.NoError(t, os.Remove(filepath.Join(o.PinDir, mapsLink)))
	require.NoError(t, os.Symlink(other, filepath.Join(o.PinDir, mapsLink)))
	require.Error(t, Dump(o, os.Stderr))

	d = w.open(o)
	require.Equal(t, "127.0.0.2:8080", w.do(request{Do: "tcp", Addr: "10.0.0.1:80"}).From)
	apply(t, d, full(svc("web", port("10.0.0.1:80/TCP", "127.0.0.3:8080"))))
	require.Equal(t, "127.0.0.3:8080", w.do(request{Do: "tcp", Addr: "10.0.0.1:80"}).From)
	require.NoDirExists(t, filepath.Join(o.PinDir, other))
}

// TestRepair: what a stranger did to maps, pins and links is undone by the next full update.
func TestRepair(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.serve("127.0.0.2:8080")
	o := w.options("lbproxy")
	d := w.open(o)
	world := full(svc("web", port("10.0.0.1:80/TCP", "127.0.0.2:8080")), svc("b", port("10.0.0.2:80/TCP", "127.0.0.2:8080")))
	apply(t, d, world)
	want := dump(t, o)

	store := d.table.mem.frontends
	key := func(addr string) frontendKey {
		return encodeFrontend(datapath.Addr{AddrPort: netip.MustParseAddrPort(addr), Protocol: datapath.TCP})
	}
	_, err := store.Delete([]frontendKey{key("10.0.0.1:80")})
	require.NoError(t, err)
	_, err = store.Put([]frontendKey{key("10.0.0.2:80"), key("10.9.9.9:80")}, []uint64{1 << 40, 7})
	require.NoError(t, err)
	d.table.mem.sets[1] = setWord(12345, 3)
	require.NoError(t, os.Remove(filepath.Join(o.PinDir, bpfProgConnect4)))
	require.NotEqual(t, want, dump(t, o))

	apply(t, d, world)
	require.Equal(t, want, dump(t, o))
	require.FileExists(t, filepath.Join(o.PinDir, bpfProgConnect4))
	require.Equal(t, "127.0.0.2:8080", w.do(request{Do: "tcp", Addr: "10.0.0.1:80"}).From)
	require.EqualValues(t, 4, d.table.repaired)

	// A restart onto damaged maps repairs them too.
	_, err = store.Put([]frontendKey{key("10.0.0.2:80"), key("10.9.9.9:80")}, []uint64{1 << 40, 7})
	require.NoError(t, err)
	d.table.mem.sets[0], d.table.mem.sets[1] = setWord(1<<31, 3), setWord(0, 2)
	require.NoError(t, d.Close())
	d = w.open(o)
	apply(t, d, world)
	require.Equal(t, want, dump(t, o))
}

func TestNotSupported(t *testing.T) {
	w := newWorld(t)
	o := w.options("lbproxy")
	for name, o := range map[string]Options{
		"no cgroup2":    {CgroupRoot: "/proc", PinDir: o.PinDir},
		"no such group": {CgroupRoot: w.Cgroup + "/none", PinDir: o.PinDir},
		"no bpffs":      {CgroupRoot: w.Cgroup, PinDir: filepath.Join(t.TempDir(), "lbproxy")},
		"bpffs beside":  {CgroupRoot: w.Cgroup, PinDir: filepath.Join(t.TempDir(), "lbproxy"), BPFFS: w.BPFFS},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Open(o)
			require.ErrorIs(t, err, ErrNotSupported)
			require.NotContains(t, err.Error(), "\n")
			require.NoDirExists(t, o.PinDir)
		})
	}
}

func TestMountsBPFFS(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	require.ErrorContains(t, MountBPFFS(filepath.Join(dir, "none")), "no such file")
	o := Options{CgroupRoot: w.Cgroup, PinDir: filepath.Join(dir, "lbproxy"), BPFFS: dir, Log: w.options("").Log}
	d, err := Open(o)
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	require.NoError(t, err)
	require.NoError(t, d.Close())
	require.NoError(t, MountBPFFS(dir), "once is enough")
	require.NoError(t, Cleanup(o))
}

func TestFirstUpdateMustBeFull(t *testing.T) {
	w := newWorld(t)
	d := w.open(w.options("lbproxy"))
	require.Error(t, d.Apply(context.Background(), changed(svc("a", port("10.0.0.1:80/TCP", "10.1.0.1:80")))))
	require.NoError(t, d.Close())
	require.Error(t, d.Apply(context.Background(), full()))
}
