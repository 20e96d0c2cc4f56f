package datapath

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestFormat(t *testing.T) {
	s := &Service{Name: Name{"shop", "web"}, Ports: []Port{{
		Name: "http", Protocol: TCP, Affinity: time.Minute,
		Sets: [][]Backend{{{Addr: netip.MustParseAddrPort("10.0.0.1:8080"), Local: true}, {Addr: netip.MustParseAddrPort("10.0.0.2:8080")}}, {}},
		Frontends: []Frontend{
			{Kind: ClusterIP, IP: netip.MustParseAddr("10.96.0.1"), Port: 80, Masquerade: FromNode | FromOutside},
			{Kind: LoadBalancer, IP: netip.MustParseAddr("198.51.100.1"), Port: 80, Outside: Route{1, Drop}, Masquerade: FromNode,
				Sources: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.0/24")}},
		},
	}, {
		Protocol: UDP, IPv6: true, Sets: [][]Backend{{}},
		Frontends: []Frontend{{Kind: ExternalIP, IP: netip.MustParseAddr("2001:db8::1"), Port: 53, Outside: Route{7, Drop}, Masquerade: FromEveryone}},
	}}}
	var b strings.Builder
	require.NoError(t, Format(&b, s))
	require.Equal(t, `service shop/web
  port http TCP IPv4 affinity 1m0s
    set 0: 10.0.0.1:8080 local, 10.0.0.2:8080
    set 1: empty
    ClusterIP 10.96.0.1:80: inside set 0, outside set 0, masquerade node+outside
    LoadBalancer 198.51.100.1:80: inside set 0, outside drop, masquerade node, sources 10.0.0.0/8, 192.0.2.0/24
  port "" UDP IPv6
    set 0: empty
    ExternalIP [2001:db8::1]:53: inside reject, outside set 7 (missing), masquerade everyone
`, b.String())
	require.Equal(t, "nobody", FromNobody.String())
	require.EqualError(t, Format(failingWriter{}, s), "write service shop/web: disk full")
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("disk full") }
