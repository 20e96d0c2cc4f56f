package endpoints

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

var nodeConfig = Config{NodeName: "node", ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, ExternalIPs: true}

func testService(i int) *v1.Service {
	return &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("svc-%d", i)},
		Spec: v1.ServiceSpec{
			ClusterIP: fmt.Sprintf("10.%d.%d.%d", 96+i>>16, i>>8&255, i&255),
			Ports:     []v1.ServicePort{{Name: "http", Port: 80, Protocol: v1.ProtocolTCP}},
		},
	}
}

func testSlice(i, endpoints int) *discovery.EndpointSlice {
	name, port, nodeName := "http", int32(8080), "node2"
	es := &discovery.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("svc-%d-x", i), Labels: map[string]string{discovery.LabelServiceName: fmt.Sprintf("svc-%d", i)}},
		AddressType: discovery.AddressTypeIPv4,
		Ports:       []discovery.EndpointPort{{Name: &name, Port: &port}},
	}
	for j := range endpoints {
		es.Endpoints = append(es.Endpoints, discovery.Endpoint{Addresses: []string{fmt.Sprintf("10.244.%d.%d", (i*endpoints+j)>>8&255, (i*endpoints+j)&255)}, NodeName: &nodeName})
	}
	return es
}

func filledStore(services, endpoints int) *Store {
	s := NewStore(nodeConfig, quiet())
	for i := range services {
		s.SetService(testService(i))
		s.SetSlice(testSlice(i, endpoints))
	}
	return s
}

// resolvedBy counts how many Services the next Take resolves after fn.
func resolvedBy(s *Store, fn func()) (int, datapath.Update) {
	fn()
	s.resolved = 0
	u := s.Take()
	return s.resolved, u
}

func serviceNames(u datapath.Update) []string {
	list := []string{}
	for _, svc := range u.Services {
		list = append(list, svc.Name.Name)
	}
	return list
}

func TestEventCostsItsService(t *testing.T) {
	s := filledStore(1000, 3)
	s.Synced()
	require.Len(t, s.Take().Services, 1000)
	withNodePort := testService(5)
	withNodePort.Spec.Ports[0].NodePort = 30005
	for _, test := range []struct {
		name     string
		event    func()
		resolved int
		services []string
	}{
		{"endpoint", func() { s.SetSlice(testSlice(7, 4)) }, 1, []string{"svc-7"}},
		{"the same slice", func() { s.SetSlice(testSlice(7, 4)) }, 0, []string{}},
		{"the same service", func() { s.SetService(testService(8)) }, 0, []string{}},
		{"service", func() { x := testService(9); x.Spec.SessionAffinity = "ClientIP"; s.SetService(x) }, 1, []string{"svc-9"}},
		{"a slice that changes nothing here", func() {
			x := testSlice(10, 3)
			x.Endpoints[0].Hints = &discovery.EndpointHints{ForZones: []discovery.ForZone{{Name: "a"}}}
			s.SetSlice(x)
		}, 1, []string{}},
		{"several events of one service", func() { s.SetSlice(testSlice(11, 1)); s.SetSlice(testSlice(11, 2)); s.DeleteSlice("ns", "svc-11-x") }, 1, []string{"svc-11"}},
		{"slice of an unknown service", func() { s.SetSlice(testSlice(5000, 1)) }, 0, []string{}},
		{"new service", func() { s.SetService(testService(5000)) }, 1, []string{"svc-5000"}},
		{"a nodeport before there is an address", func() { s.SetService(withNodePort) }, 1, []string{}},
		{"node address: services with nodeports", func() { s.SetNodeAddrs([]netip.Addr{netip.MustParseAddr("172.18.0.11")}) }, 1, []string{"svc-5"}},
		{"the same node address", func() { s.SetNodeAddrs([]netip.Addr{netip.MustParseAddr("172.18.0.11")}) }, 0, []string{}},
		{"another claim on an address: both", func() { x := testService(3); x.Spec.ExternalIPs = []string{"10.96.0.2"}; s.SetService(x) }, 1, []string{}},
		{"zone: all, but nothing changes", func() { s.SetNode(testNode("a")) }, 1001, []string{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n, u := resolvedBy(s, test.event)
			require.Equal(t, test.resolved, n)
			require.Equal(t, test.services, serviceNames(u))
			require.False(t, u.Full)
			require.Nil(t, u.LocalPods)
			require.Empty(t, u.Removed)
		})
	}
}

func testNode(zone string) *v1.Node {
	return &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node", Labels: map[string]string{v1.LabelTopologyZone: zone}},
		Status: v1.NodeStatus{Addresses: []v1.NodeAddress{{Type: v1.NodeInternalIP, Address: "172.18.0.11"}}}}
}

func TestNothingBeforeSynced(t *testing.T) {
	s := filledStore(3, 1)
	require.Equal(t, datapath.Update{}, s.Take())
	require.Empty(t, s.Changed())
	s.Synced()
	require.Len(t, s.Changed(), 1)
	<-s.Changed()
	u := s.Take()
	require.True(t, u.Full)
	require.NotNil(t, u.LocalPods)
	require.Equal(t, []string{"svc-0", "svc-1", "svc-2"}, serviceNames(u))
	s.Synced()
	require.Empty(t, s.Changed(), "synced again is no news")
	s.SetService(testService(3))
	require.Len(t, s.Changed(), 1)
}

func TestRemoved(t *testing.T) {
	s := filledStore(2, 1)
	s.Synced()
	s.Take()
	s.DeleteService(datapath.Name{Namespace: "ns", Name: "svc-0"})
	s.DeleteService(datapath.Name{Namespace: "ns", Name: "unknown"})
	require.Equal(t, []datapath.Name{{Namespace: "ns", Name: "svc-0"}}, s.Take().Removed)
	s.DeleteSlice("ns", "svc-0-x")
	s.DeleteSlice("ns", "unknown")
	u := s.Take()
	require.Empty(t, u.Removed)
	require.Len(t, s.entries, 1, "nothing is kept of what is gone")
	require.Len(t, s.owners, 1)
	require.Len(t, s.claims.owner, 1)
	// Gone and back between two updates is a change at most.
	s.DeleteService(datapath.Name{Namespace: "ns", Name: "svc-1"})
	s.SetService(testService(1))
	u = s.Take()
	require.Empty(t, u.Removed)
	require.Empty(t, u.Services)
}

func TestRetry(t *testing.T) {
	s := filledStore(3, 1)
	s.Synced()
	first := s.Take()
	for range len(s.Changed()) {
		<-s.Changed()
	}
	s.SetSlice(testSlice(1, 2))
	u := s.Take()
	require.Equal(t, []string{"svc-1"}, serviceNames(u))
	s.Retry(u)
	require.Len(t, s.Changed(), 1)
	require.Equal(t, u.Services, s.Take().Services, "unchanged, but the datapath does not have it")
	require.Empty(t, s.Take().Services)
	// What failed goes back to what was there before: the datapath may have either.
	s.SetSlice(testSlice(1, 3))
	u = s.Take()
	s.SetSlice(testSlice(1, 2))
	s.Retry(u)
	require.Equal(t, []string{"svc-1"}, serviceNames(s.Take()))
	// A failed removal of a Service that is back.
	s.DeleteService(datapath.Name{Namespace: "ns", Name: "svc-2"})
	u = s.Take()
	s.Retry(u)
	s.SetService(testService(2))
	u = s.Take()
	require.Equal(t, []string{"svc-2"}, serviceNames(u))
	require.Empty(t, u.Removed)
	// A full one: everything as it is now, and how to tell pods.
	s.SetSlice(testSlice(0, 5))
	s.Retry(first)
	s.resolved = 0
	u = s.Take()
	require.True(t, u.Full)
	require.Equal(t, first.LocalPods, u.LocalPods)
	require.Equal(t, []string{"svc-0", "svc-1", "svc-2"}, serviceNames(u))
	require.Len(t, u.Services[0].Ports[0].Sets[0], 5)
	require.Equal(t, 1, s.resolved, "what did not change is not resolved again")
}

func TestProblemsLoggedOnce(t *testing.T) {
	var out bytes.Buffer
	s := NewStore(nodeConfig, slog.New(slog.NewTextHandler(&out, nil)))
	bad := testService(1)
	bad.Spec.ExternalIPs = []string{"x"}
	s.SetService(bad)
	s.SetService(bad)
	require.Equal(t, 1, strings.Count(out.String(), "\n"), out.String())
	require.Contains(t, out.String(), `service ns/svc-1: spec.externalIPs[0]: \"x\" is not an IP address`)
	require.Len(t, s.Problems(), 1)
	s.SetService(testService(1))
	require.Empty(t, s.Problems())
	s.SetService(bad)
	require.Equal(t, 2, strings.Count(out.String(), "\n"), "it is a new problem")
	s.DeleteService(datapath.Name{Namespace: "ns", Name: "svc-1"})
	require.Empty(t, s.Problems())
}

// TestClaimsStayTidy plays many changes of claims and compares with a fresh store.
func TestClaimsStayTidy(t *testing.T) {
	s := NewStore(nodeConfig, quiet())
	s.Synced()
	have := map[string]string{}
	objects := map[string]*v1.Service{}
	for step := range 3000 {
		i := step * 7919 % 23
		svc := testService(i)
		svc.CreationTimestamp = metav1.NewTime(time.Unix(int64(step*31%5), 0))
		for j := range step * 17 % 4 {
			svc.Spec.ExternalIPs = append(svc.Spec.ExternalIPs, fmt.Sprintf("203.0.113.%d", (step/3+j)%6))
		}
		if step%11 == 0 {
			s.DeleteService(datapath.Name{Namespace: "ns", Name: svc.Name})
			delete(objects, svc.Name)
		} else {
			s.SetService(svc)
			objects[svc.Name] = svc
		}
		if step%3 != 0 {
			continue
		}
		apply(have, s.Take())
		if step%30 != 0 {
			continue
		}
		fresh := NewStore(nodeConfig, quiet())
		for _, o := range objects {
			fresh.SetService(o)
		}
		fresh.Synced()
		want := map[string]string{}
		apply(want, fresh.Take())
		require.Equal(t, want, have, "step %d", step)
		require.Equal(t, fresh.Problems(), s.Problems(), "step %d", step)
	}
}

func apply(have map[string]string, u datapath.Update) {
	if u.Full {
		clear(have)
	}
	for _, name := range u.Removed {
		delete(have, name.Name)
	}
	for _, svc := range u.Services {
		var b strings.Builder
		_ = datapath.Format(&b, svc)
		have[svc.Name.Name] = b.String()
	}
}

func TestResolveOneService(t *testing.T) {
	svc, problems := Resolve(nodeConfig, testNode("a"), testService(1), []*discovery.EndpointSlice{testSlice(1, 2), testSlice(2, 9)})
	require.Empty(t, problems)
	require.Len(t, svc.Ports[0].Sets[0], 2)
	bad := testService(1)
	bad.Spec.ClusterIP = "x"
	svc, problems = Resolve(nodeConfig, nil, bad, nil)
	require.Nil(t, svc)
	require.Len(t, problems, 1)
}

// TestManyPorts guards against cost that grows with the square of a hostile object.
func TestManyPorts(t *testing.T) {
	s := NewStore(nodeConfig, quiet())
	s.SetNodeAddrs([]netip.Addr{netip.MustParseAddr("172.18.0.11")})
	svc := testService(1)
	svc.Spec.Ports = nil
	for i := range int32(65535) {
		svc.Spec.Ports = append(svc.Spec.Ports, v1.ServicePort{Name: fmt.Sprint(i), Port: i + 1, NodePort: i + 1})
	}
	es := testSlice(1, 1)
	es.Endpoints = append(es.Endpoints, make([]discovery.Endpoint, 1_000_000)...)
	s.SetService(svc)
	s.SetSlice(es)
	s.Synced()
	start := time.Now()
	require.Len(t, s.Take().Services[0].Ports, 65535)
	require.Less(t, time.Since(start), 10*time.Second)
	require.Len(t, s.Problems(), maxFaults+1)
}

func TestConcurrentUse(t *testing.T) {
	s := filledStore(50, 2)
	s.Synced()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 500 {
				switch (i + w) % 5 {
				case 0:
					s.SetSlice(testSlice(i%50, 1+i%7))
				case 1:
					s.SetService(testService(i % 60))
				case 2:
					s.DeleteService(datapath.Name{Namespace: "ns", Name: fmt.Sprintf("svc-%d", i%60)})
				case 3:
					s.SetNode(testNode(fmt.Sprint(i % 3)))
				case 4:
					u := s.Take()
					if i%10 == 4 {
						s.Retry(u)
					}
					s.Problems()
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkResolve(b *testing.B) {
	svc, _ := readService(testService(1))
	_, es, _ := readSlice(testSlice(1, 10))
	sc := newScene(&nodeConfig, nil, nil)
	b.ReportAllocs()
	for b.Loop() {
		sc.resolve(svc, []*slice{es}, func(datapath.Addr) bool { return true })
	}
}

func BenchmarkStoreFill10k(b *testing.B) {
	var services []*v1.Service
	var slices []*discovery.EndpointSlice
	for i := range 10000 {
		services, slices = append(services, testService(i)), append(slices, testSlice(i, 5))
	}
	b.ReportAllocs()
	for b.Loop() {
		s := NewStore(nodeConfig, quiet())
		for i := range services {
			s.SetService(services[i])
			s.SetSlice(slices[i])
		}
		s.Synced()
		if n := len(s.Take().Services); n != 10000 {
			b.Fatal(n)
		}
	}
}

func BenchmarkEndpointEvent50k(b *testing.B) {
	s := filledStore(50000, 10)
	s.Synced()
	s.Take()
	events := []*discovery.EndpointSlice{testSlice(25000, 9), testSlice(25000, 10)}
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; b.Loop(); i++ {
		s.SetSlice(events[i%2])
		if len(s.Take().Services) != 1 {
			b.Fatal("not one service")
		}
	}
}
