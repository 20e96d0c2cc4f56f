package ebpf

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

func TestPlan(t *testing.T) {
	edit := func(p datapath.Port, f func(*datapath.Port)) datapath.Port {
		f(&p)
		return p
	}
	full4 := port("10.0.0.1:80/TCP", "10.1.0.1:80", "10.1.0.2:80")
	for _, c := range []struct {
		name      string
		port      datapath.Port
		canRefuse bool
		want      string
	}{
		{"tcp", full4, true, "10.0.0.1:80/TCP -> 10.1.0.1:80 10.1.0.2:80"},
		{"udp", port("10.0.0.1:53/UDP", "10.1.0.1:53"), true, "10.0.0.1:53/UDP -> 10.1.0.1:53"},
		{"ipv6", port("[fd00::1]:80/TCP", "[fd01::1]:80"), true, "[fd00::1]:80/TCP -> [fd01::1]:80"},
		{"sctp", edit(full4, func(p *datapath.Port) { p.Protocol = datapath.SCTP }), true, ""},
		{"sources", edit(full4, func(p *datapath.Port) {
			p.Frontends = []datapath.Frontend{{IP: p.Frontends[0].IP, Port: 80, Sources: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}
		}), true, ""},
		{"affinity", edit(full4, func(p *datapath.Port) { p.Affinity = time.Hour }), true, ""},
		{"affinity on loopback", edit(port("127.0.0.1:30080/TCP", "10.1.0.1:80"), func(p *datapath.Port) { p.Affinity = time.Hour }), true,
			"127.0.0.1:30080/TCP -> 10.1.0.1:80"},
		{"empty, reject", port("10.0.0.1:80/TCP"), true, "10.0.0.1:80/TCP ->"},
		{"empty, reject, old kernel", port("10.0.0.1:80/TCP"), false, ""},
		{"empty, drop", edit(port("10.0.0.1:80/TCP"), func(p *datapath.Port) { p.Frontends[0].Inside.Empty = datapath.Drop }), true, ""},
		{"unsorted", edit(full4, func(p *datapath.Port) { p.Sets = [][]datapath.Backend{{p.Sets[0][1], p.Sets[0][0]}} }), true,
			"10.0.0.1:80/TCP -> 10.1.0.1:80 10.1.0.2:80"},
		{"only the inside route", edit(full4, func(p *datapath.Port) {
			p.Sets = append(p.Sets, backends("10.1.0.9:80"))
			p.Frontends[0].Outside.Set = 1
		}), true, "10.0.0.1:80/TCP -> 10.1.0.1:80 10.1.0.2:80"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sets, err := plan(svc("s", c.port), c.canRefuse)
			require.NoError(t, err)
			var got []string
			for _, s := range sets {
				for _, k := range s.frontends {
					line := decodeFrontend(k).String() + " ->"
					for _, b := range s.backends {
						line += " " + b.Addr.String()
					}
					got = append(got, line)
				}
			}
			require.Equal(t, c.want, strings.Join(got, "\n"))
		})
	}
}

func TestPlanRefuses(t *testing.T) {
	for name, p := range map[string]datapath.Port{
		"frontend of the other family": {IPv6: true, Sets: [][]datapath.Backend{nil}, Frontends: []datapath.Frontend{{IP: netip.MustParseAddr("10.0.0.1"), Port: 80}}},
		"frontend without an address":  {Sets: [][]datapath.Backend{nil}, Frontends: []datapath.Frontend{{Port: 80}}},
		"frontend unspecified":         {Sets: [][]datapath.Backend{nil}, Frontends: []datapath.Frontend{{IP: netip.IPv4Unspecified(), Port: 80}}},
		"frontend mapped":              {IPv6: true, Sets: [][]datapath.Backend{nil}, Frontends: []datapath.Frontend{{IP: netip.MustParseAddr("::ffff:10.0.0.1"), Port: 80}}},
		"frontend of port 0":           {Sets: [][]datapath.Backend{nil}, Frontends: []datapath.Frontend{{IP: netip.MustParseAddr("10.0.0.1")}}},
		"no such set":                  {Frontends: []datapath.Frontend{{IP: netip.MustParseAddr("10.0.0.1"), Port: 80}}},
		"backend of the other family":  port("10.0.0.1:80/TCP", "[fd00::1]:80"),
		"backend of port 0":            port("10.0.0.1:80/TCP", "10.1.0.1:0"),
		"too many backends": func() datapath.Port {
			p := port("10.0.0.1:80/TCP")
			p.Sets[0] = make([]datapath.Backend, maxBackends+1)
			return p
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			p.Protocol = datapath.TCP
			_, err := plan(svc("s", p), true)
			require.Error(t, err)
		})
	}
}

func TestEncode(t *testing.T) {
	for _, s := range []string{"10.0.0.1:80", "255.255.255.255:65535", "[fd00:10:96::1]:443", "[::1]:1"} {
		a := datapath.Addr{AddrPort: netip.MustParseAddrPort(s), Protocol: datapath.UDP}
		k := encodeFrontend(a)
		require.Equal(t, a, decodeFrontend(k))
		require.Equal(t, a.Addr().Is4(), isIPv4(k))
		if isIPv4(k) {
			require.Equal(t, k, widen(narrow(k)))
		}
		require.Equal(t, a.AddrPort, decodeBackend(encodeBackend(a.AddrPort)))
	}
}
