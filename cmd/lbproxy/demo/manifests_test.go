package demo

import (
	"bytes"
	"io/fs"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"

	"github.com/lbproxy/lbproxy/examples"
	"github.com/lbproxy/lbproxy/test/lab"
)

// readExamples returns the objects of the examples.
func readExamples(t *testing.T) (services map[string]v1.Service, slices []discovery.EndpointSlice) {
	services = map[string]v1.Service{}
	names, err := fs.Glob(examples.Manifests, "*.yaml")
	require.NoError(t, err)
	for _, name := range names {
		data, err := fs.ReadFile(examples.Manifests, name)
		require.NoError(t, err)
		for _, doc := range bytes.Split(data, []byte("\n---\n")) {
			var s v1.Service
			var slice discovery.EndpointSlice
			var node v1.Node
			switch {
			case bytes.Contains(doc, []byte("kind: Service\n")):
				require.NoError(t, yaml.UnmarshalStrict(doc, &s), name)
				services[strings.TrimSuffix(name, ".yaml")] = s
			case bytes.Contains(doc, []byte("kind: EndpointSlice\n")):
				require.NoError(t, yaml.UnmarshalStrict(doc, &slice), name)
				slices = append(slices, slice)
			default:
				require.NoError(t, yaml.UnmarshalStrict(doc, &node), name)
				require.Equal(t, "node", node.Name)
			}
		}
	}
	return services, slices
}

// The endpoints in the examples are the pods of the demo, with their addresses and ports.
func TestExampleEndpoints(t *testing.T) {
	_, slices := readExamples(t)
	endpoints := map[string]int{}
	for _, s := range slices {
		ipv6 := s.AddressType == discovery.AddressTypeIPv6
		for _, e := range s.Endpoints {
			endpoints[e.TargetRef.Name]++
			require.Equal(t, []string{podAddr(e.TargetRef.Name, ipv6).String()}, e.Addresses)
			for _, p := range pods {
				if p.name == e.TargetRef.Name {
					require.Equal(t, p.node, *e.NodeName, p.name)
					require.Equal(t, int32(targets[p.service].port), *s.Ports[0].Port, p.name)
				}
			}
		}
	}
	for _, p := range pods {
		want := 2 // one in each family
		if p.dormant || p.service == "" {
			want = 0
		}
		require.Equal(t, want, endpoints[p.name], p.name)
	}
}

// Every frontend the demo dials is in the examples, with its policy, and every Service of the examples is dialed.
func TestExampleFrontends(t *testing.T) {
	services, _ := readExamples(t)
	dialed := map[string]bool{}
	for _, f := range frontends {
		s, ok := services[f.service]
		require.True(t, ok, f.service)
		dialed[f.service] = true
		for _, addr := range []netip.AddrPort{f.v4, f.v6} {
			require.True(t, serves(&s, addr, strings.ToUpper(f.network)), "%s %s", f.service, addr)
		}
		local := s.Spec.ExternalTrafficPolicy == v1.ServiceExternalTrafficPolicyLocal
		if f.kind.String() == "ClusterIP" {
			local = *s.Spec.InternalTrafficPolicy == v1.ServiceInternalTrafficPolicyLocal
		}
		require.Equal(t, local, f.local, "%s %s", f.service, f.kind)
	}
	for name := range services {
		require.True(t, dialed[name], name)
	}
}

// serves says whether the Service has this frontend, in the laboratory.
func serves(s *v1.Service, addr netip.AddrPort, protocol string) bool {
	ips := append(append([]string{}, s.Spec.ClusterIPs...), s.Spec.ExternalIPs...)
	for _, i := range s.Status.LoadBalancer.Ingress {
		ips = append(ips, i.IP)
	}
	for _, p := range s.Spec.Ports {
		if string(p.Protocol) != protocol {
			continue
		}
		for _, ip := range ips {
			if addr == netip.AddrPortFrom(netip.MustParseAddr(ip), uint16(p.Port)) {
				return true
			}
		}
		onNode := addr.Addr().IsLoopback() || ownerOf(addr.Addr()) == fromNode
		if onNode && p.NodePort == int32(addr.Port()) {
			return true
		}
	}
	return false
}

func TestAddrs(t *testing.T) {
	require.Equal(t, "10.244.1.2", podAddr("web-1", false).String())
	require.Equal(t, "fd00:10:244:2::2", podAddr("web-2", true).String())
	for _, p := range pods {
		require.True(t, lab.Cluster4.Contains(podAddr(p.name, false)))
		require.True(t, lab.Cluster6.Contains(podAddr(p.name, true)))
	}
}

func TestEditSlices(t *testing.T) {
	manifest, err := fs.ReadFile(examples.Manifests, "web.yaml")
	require.NoError(t, err)
	names := func(data []byte) (ready, terminating []string) {
		for _, doc := range bytes.Split(data, []byte("\n---\n"))[1:] {
			var s discovery.EndpointSlice
			require.NoError(t, yaml.UnmarshalStrict(doc, &s))
			for _, e := range s.Endpoints {
				if *e.Conditions.Ready {
					ready = append(ready, e.TargetRef.Name+" "+e.Addresses[0])
				} else if *e.Conditions.Terminating && *e.Conditions.Serving {
					terminating = append(terminating, e.TargetRef.Name)
				}
			}
		}
		return ready, terminating
	}
	edit := func(change func(*discovery.EndpointSlice)) []byte {
		out, err := editSlices(manifest, change)
		require.NoError(t, err)
		require.Equal(t, string(bytes.Split(manifest, []byte("\n---\n"))[0]), string(bytes.Split(out, []byte("\n---\n"))[0]), "the Service stays")
		return out
	}
	ready, _ := names(edit(addPod("web-3")))
	require.Equal(t, []string{"web-1 10.244.1.2", "web-2 10.244.2.2", "web-3 10.244.2.8",
		"web-1 fd00:10:244:1::2", "web-2 fd00:10:244:2::2", "web-3 fd00:10:244:2::8"}, ready)
	ready, terminating := names(edit(terminatePod("web-1")))
	require.Equal(t, []string{"web-2 10.244.2.2", "web-2 fd00:10:244:2::2"}, ready)
	require.Equal(t, []string{"web-1", "web-1"}, terminating)
	ready, terminating = names(edit(removePod("web-1")))
	require.Equal(t, []string{"web-2 10.244.2.2", "web-2 fd00:10:244:2::2"}, ready)
	require.Empty(t, terminating)
	ready, _ = names(edit(removeAllPods))
	require.Empty(t, ready)
	_, err = editSlices([]byte("a: b: c"), removeAllPods)
	require.Error(t, err)
}
