package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lbproxy/lbproxy/pkg/datapath"
	"github.com/lbproxy/lbproxy/pkg/datapath/ebpf"
	"github.com/lbproxy/lbproxy/pkg/datapath/nftables"
	"github.com/lbproxy/lbproxy/test/lab"
	"github.com/lbproxy/lbproxy/test/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

var sizes = []int{1_000, 10_000, 50_000}

// backends is how many each Service has.
const backends = 5

// contender is a datapath that can be opened, and emptied, any number of times.
type contender struct {
	open    func() (statDatapath, error)
	cleanup func() error
}

type statDatapath interface {
	datapath.Datapath
	Stats() datapath.Stats
}

func contenders(w *lab.World) map[string]contender {
	quiet := slog.New(slog.DiscardHandler)
	packets := nftables.Options{Table: "lbproxy", Log: quiet}
	sockets := ebpf.Options{CgroupRoot: w.Cgroup(), BPFFS: w.BPFFS(), PinDir: filepath.Join(w.BPFFS(), "bench"), Log: quiet}
	return map[string]contender{
		"ebpf": {
			func() (statDatapath, error) { return ebpf.Open(sockets) },
			func() error { return ebpf.Cleanup(sockets) },
		},
		"nftables": {
			func() (statDatapath, error) { return nftables.Open(packets) },
			func() error { return nftables.Cleanup(packets) },
		},
	}
}

// forEach runs f for each datapath and size, on a thread inside a namespace of its own.
func forEach(b *testing.B, f func(b *testing.B, c contender, services int)) {
	w := labtest.Start(b)
	for name, c := range contenders(w) {
		for _, n := range sizes {
			b.Run(fmt.Sprintf("datapath=%s/services=%d", name, n), func(b *testing.B) {
				require.NoError(b, w.Node.Do(func() error {
					f(b, c, n)
					return c.cleanup()
				}))
			})
		}
	}
}

// service is Service number i: a ClusterIP with some backends, one of which changes with variant.
func service(i, count, variant int) *datapath.Service {
	set := make([]datapath.Backend, count)
	for j := range set {
		set[j].Addr = netip.AddrPortFrom(addr(10<<24|1<<23|uint32(i*8+j)), 8080)
	}
	set[count-1].Addr = netip.AddrPortFrom(set[count-1].Addr.Addr(), uint16(8080+variant))
	return &datapath.Service{
		Name: datapath.Name{Namespace: "bench", Name: fmt.Sprintf("service-%d", i)},
		Ports: []datapath.Port{{
			Name: "http", Protocol: datapath.TCP, Sets: [][]datapath.Backend{set},
			Frontends: []datapath.Frontend{{Kind: datapath.ClusterIP, IP: addr(10<<24 | 96<<16 + uint32(i)), Port: 80,
				Masquerade: datapath.FromNode | datapath.FromOutside}},
		}},
	}
}

func addr(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}

func world(services int) datapath.Update {
	u := datapath.Update{Full: true, LocalPods: &datapath.LocalPods{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/9")}}}
	for i := range services {
		u.Services = append(u.Services, service(i, backends, 0))
	}
	return u
}

func open(b *testing.B, c contender) statDatapath {
	d, err := c.open()
	require.NoError(b, err)
	return d
}

func apply(b *testing.B, d datapath.Datapath, u datapath.Update) {
	if err := d.Apply(context.Background(), u); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkColdSync is from objects in memory to a complete kernel that had nothing.
func BenchmarkColdSync(b *testing.B) {
	forEach(b, func(b *testing.B, c contender, services int) {
		u := world(services)
		for b.Loop() {
			d := open(b, c)
			apply(b, d, u)
			b.StopTimer()
			require.NoError(b, d.Close())
			require.NoError(b, c.cleanup())
			b.StartTimer()
		}
	})
}

// BenchmarkWarmRestart is from objects in memory to the certainty that the kernel has them all. It writes nothing.
func BenchmarkWarmRestart(b *testing.B) {
	forEach(b, func(b *testing.B, c contender, services int) {
		u := world(services)
		d := open(b, c)
		apply(b, d, u)
		require.NoError(b, d.Close())
		for b.Loop() {
			d := open(b, c)
			apply(b, d, u)
			b.StopTimer()
			require.Zero(b, d.Stats().Writes)
			require.NoError(b, d.Close())
			b.StartTimer()
		}
	})
}

// change measures one Service alternating between two states, among all the others.
func change(b *testing.B, variant func(i int) *datapath.Service) {
	forEach(b, func(b *testing.B, c contender, services int) {
		d := open(b, c)
		apply(b, d, world(services))
		i := 0
		for b.Loop() {
			i++
			apply(b, d, datapath.Update{Services: []*datapath.Service{variant(i)}})
		}
		require.NoError(b, d.Close())
	})
}

// BenchmarkEndpointChange replaces one backend.
func BenchmarkEndpointChange(b *testing.B) {
	change(b, func(i int) *datapath.Service { return service(7, backends, i%2) })
}

// BenchmarkScale adds one backend and takes it away again.
func BenchmarkScale(b *testing.B) {
	change(b, func(i int) *datapath.Service { return service(7, backends+i%2, 0) })
}

// BenchmarkServiceAddRemove adds one Service and takes it away again.
func BenchmarkServiceAddRemove(b *testing.B) {
	forEach(b, func(b *testing.B, c contender, services int) {
		d := open(b, c)
		apply(b, d, world(services))
		extra := service(services+1, backends, 0)
		i := 0
		for b.Loop() {
			if i++; i%2 == 1 {
				apply(b, d, datapath.Update{Services: []*datapath.Service{extra}})
			} else {
				apply(b, d, datapath.Update{Removed: []datapath.Name{extra.Name}})
			}
		}
		require.NoError(b, d.Close())
	})
}
