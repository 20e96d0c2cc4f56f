package endpoints

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

func TestMasquerade(t *testing.T) {
	known := datapath.LocalPods{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}}
	iface := datapath.LocalPods{Interfaces: []string{"cni0"}}
	none := datapath.LocalPods{}
	notPods := datapath.FromNode | datapath.FromOutside
	for _, test := range []struct {
		name  string
		pods  datapath.LocalPods
		all   bool
		kind  datapath.Kind
		local bool // external policy
		ipv6  bool
		want  datapath.Clients
	}{
		{"ClusterIP, pods known", known, false, datapath.ClusterIP, false, false, notPods},
		{"ClusterIP, pods known by interface", iface, false, datapath.ClusterIP, false, true, notPods},
		{"ClusterIP, pods of the other family known", known, false, datapath.ClusterIP, false, true, datapath.FromNobody},
		{"ClusterIP, pods unknown", none, false, datapath.ClusterIP, false, false, datapath.FromNobody},
		{"ClusterIP, masqueradeAll", known, true, datapath.ClusterIP, false, false, datapath.FromEveryone},
		{"ClusterIP, masqueradeAll, pods unknown", none, true, datapath.ClusterIP, false, false, datapath.FromEveryone},
		{"ClusterIP, external policy has no say", known, false, datapath.ClusterIP, true, false, notPods},
		{"NodePort Cluster", known, false, datapath.NodePort, false, false, datapath.FromEveryone},
		{"NodePort Cluster, pods unknown", none, false, datapath.NodePort, false, false, datapath.FromEveryone},
		{"NodePort Local", known, false, datapath.NodePort, true, false, datapath.FromNode},
		{"NodePort Local, pods unknown", none, false, datapath.NodePort, true, false, datapath.FromNode},
		{"NodePort Local, masqueradeAll has no say", known, true, datapath.NodePort, true, false, datapath.FromNode},
		{"LoadBalancer Cluster", known, false, datapath.LoadBalancer, false, false, datapath.FromEveryone},
		{"LoadBalancer Local", known, false, datapath.LoadBalancer, true, false, datapath.FromNode},
		{"ExternalIP Cluster", known, false, datapath.ExternalIP, false, false, datapath.FromEveryone},
		{"ExternalIP Local", known, false, datapath.ExternalIP, true, true, datapath.FromNode},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &scene{masqueradeAll: test.all, localPods: test.pods}
			require.Equal(t, test.want, s.masquerade(test.kind, test.local, test.ipv6))
		})
	}
}

func TestConfigValidate(t *testing.T) {
	for _, test := range []struct {
		name string
		c    Config
		want string
	}{
		{"empty", Config{}, ""},
		{"good", Config{NodePortAddresses: []string{"primary", "10.0.0.0/8", "fd00::/8"}, DetectLocal: DetectNodeCIDR}, ""},
		{"prefix with the + of iptables", Config{DetectLocal: DetectInterfaceNamePrefix, InterfaceNamePrefix: "cali+"}, ""},
		{"bad CIDR", Config{NodePortAddresses: []string{"primary", "10.0.0.1"}}, `read config: nodePortAddresses[1]: "10.0.0.1" is not a CIDR`},
		{"no bridge", Config{DetectLocal: DetectBridgeInterface}, "read config: bridgeInterface: is empty, but detectLocalMode is BridgeInterface"},
		{"no prefix", Config{DetectLocal: DetectInterfaceNamePrefix, InterfaceNamePrefix: "+"}, "read config: interfaceNamePrefix: is empty, but detectLocalMode is InterfaceNamePrefix"},
		{"unknown mode", Config{DetectLocal: "x"}, `read config: detectLocalMode: "x" is not one of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix`},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.c.Validate()
			s := NewStore(test.c, quiet())
			if test.want == "" {
				require.NoError(t, err)
				require.Empty(t, s.Problems())
				return
			}
			require.EqualError(t, err, test.want)
			require.Len(t, s.Problems(), 1)
			require.False(t, s.scene.localPods.Known())
		})
	}
}

func TestParse(t *testing.T) {
	for _, test := range []struct{ in, want, err string }{
		{"10.0.0.1", "10.0.0.1", ""},
		{"010.000.0.001", "10.0.0.1", ""},
		{"FD00::1", "fd00::1", ""},
		{"64:ff9b::010.0.0.1", "64:ff9b::a00:1", ""},
		{"", "", `"" is not an IP address`},
		{"10.0.0", "", `"10.0.0" is not an IP address`},
		{"10.0.0.256", "", `"10.0.0.256" is not an IP address`},
		{"10..0.1", "", `"10..0.1" is not an IP address`},
		{" 10.0.0.1", "", `" 10.0.0.1" is not an IP address`},
		{"::ffff:10.0.0.1", "", `"::ffff:10.0.0.1" is an IPv4-mapped IPv6 address`},
		{"::ffff:0a00:1", "", `"::ffff:0a00:1" is an IPv4-mapped IPv6 address`},
		{"fe80::1%eth0", "", `"fe80::1%eth0" has a zone`},
	} {
		t.Run(test.in, func(t *testing.T) {
			a, err := parseAddr(test.in)
			if test.err != "" {
				require.EqualError(t, err, test.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.want, a.String())
		})
	}
	for in, want := range map[string]string{"010.1.2.3/08": "10.0.0.0/8", "fd00::1/64": "fd00::/64", "0.0.0.0/0": "0.0.0.0/0"} {
		p, err := parsePrefix(in)
		require.NoError(t, err)
		require.Equal(t, want, p.String())
	}
	for _, in := range []string{"10.0.0.0", "10.0.0.0/33", "10.0.0.0/-1", "x/8", "::ffff:10.0.0.0/104", "10.0.0.0/"} {
		_, err := parsePrefix(in)
		require.Error(t, err, in)
	}
}
