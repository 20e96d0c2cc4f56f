package e2e

import (
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/lbproxy/lbproxy/test/kubetest"
	"github.com/lbproxy/lbproxy/test/lab"
	"github.com/lbproxy/lbproxy/test/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// TestAPIServer runs every test below in one cluster per mode. They use the same agent, one after the other, and every
// one leaves it running and synced.
func TestAPIServer(t *testing.T) {
	tests := []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"kubernetes service", testKubernetesService},
		{"kinds", testKinds},
		{"scale", testScale},
		{"ports", testPorts},
		{"type", testType},
		{"restart", testRestart},
		{"api server away", testAPIServerAway},
		{"restart while api server is away", testRestartWhileAway},
		{"without endpoint slices", func(t *testing.T, c *cluster) { testHalfList(t, c, "endpointslices", "services") }},
		{"without services", func(t *testing.T, c *cluster) { testHalfList(t, c, "services", "endpointslices") }},
		{"stop", testStop},
	}
	for _, mode := range []string{"auto", "nftables"} {
		t.Run(mode, func(t *testing.T) {
			c := startCluster(t, mode)
			c.agent.startSynced(t)
			require.NoError(t, c.Node.Do(shortenUDP))
			for _, test := range tests {
				if !t.Run(test.name, func(t *testing.T) { test.run(t, c) }) {
					return
				}
			}
		})
	}
}

// The API server's own Service, with an EndpointSlice the API server itself wrote, leads pods to it.
func testKubernetesService(t *testing.T, c *cluster) {
	config := c.api.RESTConfig(kubetest.Admin, c.pod)
	client, err := rest.HTTPClientFor(config)
	require.NoError(t, err)
	defer client.CloseIdleConnections()
	vip := lab.Services4.Addr().Next().String()
	require.Eventually(t, func() bool {
		resp, err := client.Get("https://" + vip + "/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}, patience, pollInterval)
}

// Services of every kind, with the addresses and ports that the API server allocates.
func testKinds(t *testing.T, c *cluster) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			begin := time.Now()
			s := c.create(t, kind.name, kind.spec)
			if len(kind.vips) > 0 {
				c.balance(t, s, kind.vips)
			}
			flows := kind.flows(c, s)
			refused(t, begin, "created without endpoints", slices.DeleteFunc(slices.Clone(flows), c.rejectedInOutput))
			begin = time.Now()
			c.scale(t, s, podPort, c.a, c.c)
			reach(t, begin, "endpoints created", flows, "a", "c")
			begin = time.Now()
			c.remove(t, s)
			unanswered(t, begin, "deleted", flows)
		})
	}
}

var (
	vips     = []netip.Addr{netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("2001:db8:51::10")}
	external = []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:113::10")}
)

var kinds = []struct {
	name  string
	spec  corev1.ServiceSpec
	vips  []netip.Addr // of its load balancer
	flows func(*cluster, *corev1.Service) []flow
}{
	{
		name: "cluster-ip",
		spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP},
		flows: func(c *cluster, s *corev1.Service) []flow {
			return slices.Concat(clusterIPs(c.pod, s), clusterIPs(c.Node, s))
		},
	},
	{
		name: "node-port",
		spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort},
		flows: func(c *cluster, s *corev1.Service) []flow {
			return slices.Concat(c.nodePorts(c.Outside, s), c.nodePorts(c.pod, s), c.nodePorts(c.Node, s), clusterIPs(c.pod, s))
		},
	},
	{
		name: "load-balancer",
		spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer},
		vips: vips,
		flows: func(c *cluster, s *corev1.Service) []flow {
			return slices.Concat(c.virtual(s, vips), c.nodePorts(c.Outside, s), clusterIPs(c.pod, s))
		},
	},
	{
		name: "external-ip",
		spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ExternalIPs: []string{external[0].String(), external[1].String()},
		},
		flows: func(c *cluster, s *corev1.Service) []flow {
			return slices.Concat(c.virtual(s, external), clusterIPs(c.pod, s))
		},
	},
}

// virtual are the flows to the Service at these addresses, from outside and from a pod.
func (c *cluster) virtual(s *corev1.Service, addrs []netip.Addr) []flow {
	var all []flow
	for _, addr := range addrs {
		all = append(all, flowsTo(c.Outside, addr, s, servicePort)...)
		all = append(all, flowsTo(c.pod, addr, s, servicePort)...)
	}
	return all
}

// rejectedInOutput says whether the client is told that sending is not permitted: so the kernel says it if a datagram is
// rejected before it leaves, whoever asks for that.
func (c *cluster) rejectedInOutput(f flow) bool {
	return f.from == c.Node && f.network == "udp" && c.mode == "nftables"
}

// balance takes the part of the cloud: it gives a Service the addresses of a load balancer.
func (c *cluster) balance(t *testing.T, s *corev1.Service, vips []netip.Addr) {
	t.Helper()
	s = s.DeepCopy()
	for _, vip := range vips {
		s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: vip.String()})
	}
	_, err := c.client.CoreV1().Services(namespace).UpdateStatus(t.Context(), s, metav1.UpdateOptions{})
	require.NoError(t, err)
}

// Endpoints come and go under a running Service; only without any are clients refused.
func testScale(t *testing.T, c *cluster) {
	s := c.create(t, "scale", corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort})
	pod, outside := clusterIPs(c.pod, s), c.nodePorts(c.Outside, s)
	flows := slices.Concat(pod, outside)
	begin := time.Now()
	c.scale(t, s, podPort, c.a)
	reach(t, begin, "created", flows, "a")

	stopPod, stopOutside := keepDialing(t, pod...), keepDialing(t, outside...)
	for _, step := range []struct {
		what string
		pods []*lab.Host
		want []string
	}{
		{"a becomes a, b, c", []*lab.Host{c.a, c.b, c.c}, []string{"a", "b", "c"}},
		{"a, b, c becomes a, c", []*lab.Host{c.a, c.c}, []string{"a", "c"}},
		{"a, c becomes b, a", []*lab.Host{c.b, c.a}, []string{"a", "b"}},
		{"a, b becomes a", []*lab.Host{c.a}, []string{"a"}},
	} {
		begin := time.Now()
		c.scale(t, s, podPort, step.pods...)
		reach(t, begin, step.what, flows, step.want...)
	}
	stopPod()
	stopOutside()

	begin = time.Now()
	c.scale(t, s, podPort)
	refused(t, begin, "a becomes none", flows)
	begin = time.Now()
	c.scale(t, s, podPort, c.c)
	reach(t, begin, "none becomes c", flows, "c")
	c.remove(t, s)
}

// Ports of a Service, and of its endpoints, change and are added.
func testPorts(t *testing.T, c *cluster) {
	s := c.create(t, "ports", corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP})
	c.scale(t, s, podPort, c.a, c.b)
	old := clusterIPs(c.pod, s)
	reach(t, time.Now(), "created", old, "a", "b")

	begin := time.Now()
	c.scale(t, s, podPortNew, c.a, c.b)
	reach(t, begin, "pods at another port", old, "a-new", "b-new")

	begin = time.Now()
	s = c.update(t, s, func(s *corev1.Service) {
		for i := range s.Spec.Ports {
			s.Spec.Ports[i].Port = 81
		}
	})
	reach(t, begin, "service port 81 instead of 80", clusterIPs(c.pod, s), "a-new", "b-new")
	unanswered(t, begin, "service port 80", old)

	begin = time.Now()
	s = c.update(t, s, func(s *corev1.Service) {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "more", Protocol: corev1.ProtocolTCP, Port: 82})
	})
	c.scale(t, s, podPort, c.b)
	all := clusterIPs(c.pod, s)
	reach(t, begin, "one more port", all, "b")
	begin = time.Now()
	c.remove(t, s)
	unanswered(t, begin, "deleted", all)
}

// A Service changes its type; the API server allocates and releases NodePorts.
func testType(t *testing.T, c *cluster) {
	s := c.create(t, "type", corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP})
	c.scale(t, s, podPort, c.a)
	inside := clusterIPs(c.pod, s)
	reach(t, time.Now(), "created", inside, "a")
	stop := keepDialing(t, inside...)

	begin := time.Now()
	s = c.update(t, s, func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort })
	outside := c.nodePorts(c.Outside, s)
	reach(t, begin, "ClusterIP becomes NodePort", outside, "a")
	begin = time.Now()
	s = c.update(t, s, func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeClusterIP
		for i := range s.Spec.Ports {
			s.Spec.Ports[i].NodePort = 0
		}
	})
	unanswered(t, begin, "NodePort becomes ClusterIP", outside)
	stop()
	c.remove(t, s)
}
