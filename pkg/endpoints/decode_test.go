package endpoints

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const goodService = `apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
`

func TestDecodeManifest(t *testing.T) {
	item := `{"kind":"Service","apiVersion":"v1","metadata":{"name":"a"},"spec":{"clusterIP":"10.0.0.1"}}`
	for _, test := range []struct {
		name, file, text string
		objects          []string
		problems         []string
		broken           bool
	}{
		{name: "one", text: goodService, objects: []string{"service default/web"}},
		{name: "documents", text: "# head\n---\n" + goodService + "--- # next\n" + strings.Replace(goodService, "web", "b", 1) + "---\n...\n---\n",
			objects: []string{"service default/web", "service default/b"}},
		{name: "windows line ends", text: strings.ReplaceAll(goodService+"---\n"+strings.Replace(goodService, "web", "b", 1), "\n", "\r\n"),
			objects: []string{"service default/web", "service default/b"}},
		{name: "text on the marker's line", text: "--- " + item + "\n--- " + strings.Replace(item, `"a"`, `"b"`, 1), objects: []string{"service default/a", "service default/b"}},
		{name: "list", text: "apiVersion: v1\nkind: List\nitems: [" + item + ",{kind: Node, apiVersion: v1, metadata: {name: m1}}]", objects: []string{"service default/a", "node m1"}},
		{name: "typed list", text: "apiVersion: discovery.k8s.io/v1\nkind: EndpointSliceList\nitems: [{metadata: {name: s, namespace: x}}]", objects: []string{"endpointslice x/s"}},
		{name: "list in a list", text: "apiVersion: v1\nkind: List\nitems: [{kind: List, items: [" + item + "]}]", problems: []string{"document 1 (line 1).items[0]: is a list in a list"}},
		{name: "json", file: "x.json", text: item + "\n" + strings.Replace(item, `"a"`, `"b"`, 1), objects: []string{"service default/a", "service default/b"}},
		{name: "json, half written", file: "x.json", text: item + item[:40], objects: []string{"service default/a"}, problems: []string{"document 2: unexpected EOF"}, broken: true},
		{name: "empty", text: ""},
		{name: "comments only", text: "# nothing\n---\n# here\n"},
		{name: "unknown kind", text: "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n---\n" + goodService,
			objects: []string{"service default/web"}, problems: []string{"document 1 (line 1): kind Deployment of apiVersion apps/v1 is not read here"}},
		{name: "old version", text: "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\n", problems: []string{"document 1 (line 1): kind EndpointSlice of apiVersion discovery.k8s.io/v1beta1 is not read here"}},
		{name: "no kind", text: "a: b\n", problems: []string{"document 1 (line 1): kind is missing"}},
		{name: "no version", text: "kind: Service\n", problems: []string{`document 1 (line 1): kind Service of apiVersion "" is not read here`}},
		{name: "no name", text: "---\nkind: Service\napiVersion: v1\nmetadata: {}\n", problems: []string{"document 1 (line 1): Service: metadata.name is missing"}},
		{name: "not an object", text: "hello\n", broken: true,
			problems: []string{"document 1 (line 1): is not a Kubernetes object"}},
		{name: "bad YAML", text: "kind: [\n---\n" + goodService, objects: []string{"service default/web"}, broken: true,
			problems: []string{"document 1 (line 1): yaml: line 1: did not find expected node content"}},
		{name: "key twice", text: "kind: Service\nkind: Service\n", broken: true,
			problems: []string{`document 1 (line 1): yaml: unmarshal errors: line 2: key "kind" already set in map`}},
		{name: "wrong type", text: strings.Replace(goodService, "port: 80", "port: http", 1), broken: true,
			problems: []string{"document 1 (line 1): Service: json: cannot unmarshal string into Go struct field ServicePort.spec.ports.port of type int32"}},
		{name: "unknown field", text: strings.Replace(goodService, "clusterIP", "clusterIp", 1), objects: []string{"service default/web"},
			problems: []string{`document 1 (line 1): service default/web: unknown field "spec.clusterIp"`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := decodeManifest(test.file, []byte(test.text))
			var objects, problems []string
			for _, o := range d.objects {
				objects = append(objects, o.key.String())
			}
			for _, f := range d.faults {
				problems = append(problems, f.field+": "+f.text)
			}
			require.Equal(t, test.objects, objects)
			require.Equal(t, test.problems, problems)
			require.Equal(t, test.broken, d.broken)
		})
	}
}

func TestDecodeDefaults(t *testing.T) {
	d := decodeManifest("x.yaml", []byte("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\nports: [{port: 80}]\n"))
	require.Empty(t, d.faults)
	require.NotNil(t, d.objects[0].slice.Ports[0].Name)
	require.Equal(t, "default", d.objects[0].slice.Namespace)
}

// TestDecodeGarbage wants few lines and little time for what is no manifest.
func TestDecodeGarbage(t *testing.T) {
	random := make([]byte, 10<<20)
	_, _ = rand.Read(random)
	for name, data := range map[string][]byte{
		"random bytes": random,
		"zeros":        make([]byte, 10<<20),
		"one word":     bytes.Repeat([]byte("a"), 10<<20),
		"one text":     bytes.Repeat([]byte("lorem ipsum\n"), 1<<20),
		"brackets":     bytes.Repeat([]byte("["), 10<<20),
		"braces":       bytes.Repeat([]byte("{"), 10<<20),
		"markers":      bytes.Repeat([]byte("---\n"), 3<<20),
		"bad marked":   bytes.Repeat([]byte("---\n[\n"), 1<<20),
		"key twice":    bytes.Repeat([]byte("a: b\n"), 1<<18),
	} {
		for _, file := range []string{"x.yaml", "x.json"} {
			t.Run(fmt.Sprint(name, " ", file), func(t *testing.T) {
				start := time.Now()
				d := decodeManifest(file, data)
				require.Less(t, time.Since(start), 10*time.Second)
				require.Empty(t, d.objects)
				require.LessOrEqual(t, len(d.faults), maxBroken+1)
				for _, f := range d.faults {
					require.NotContains(t, f.text, "\n")
					require.Less(t, len(f.text), 400)
				}
			})
		}
	}
}

// FuzzDecodeManifest checks that whatever a file holds can be stored and resolved, and is reported in single lines.
func FuzzDecodeManifest(f *testing.F) {
	f.Add(goodService, false)
	f.Add("apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIPs: [10.0.0.1, 'fd00::1'], externalIPs: [1.2.3.4], ports: [{port: 1, nodePort: 2, protocol: UDP}]}}\n- {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a, labels: {kubernetes.io/service-name: a}}, addressType: IPv4, ports: [{port: 1, protocol: UDP}], endpoints: [{addresses: [10.1.1.1], hints: {forZones: [{name: z}]}}]}\n", false)
	f.Add(`{"apiVersion":"v1","kind":"Node","metadata":{"name":"n"},"spec":{"podCIDRs":["10.0.0.0/8"]},"status":{"addresses":[{"type":"InternalIP","address":"10.0.0.1"}]}}`, true)
	f.Add("--- {a: b}\n---\n[", false)
	f.Fuzz(func(t *testing.T, text string, json bool) {
		file := "x.yaml"
		if json {
			file = "x.json"
		}
		d := decodeManifest(file, []byte(text))
		s := NewStore(Config{LocalhostNodePorts: true, ExternalIPs: true}, quiet())
		for i := range d.objects {
			switch o := &d.objects[i]; {
			case o.service != nil:
				s.SetService(o.service)
			case o.slice != nil:
				s.SetSlice(o.slice)
			default:
				s.SetNode(o.node)
			}
		}
		s.report("file", d.faults)
		s.Synced()
		checkUpdate(t, s)
		for _, p := range s.Problems() {
			if strings.Contains(p.Text, "\n") {
				t.Fatalf("a problem of several lines: %q", p)
			}
		}
	})
}

// checkUpdate checks what package datapath promises of its values.
func checkUpdate(t testing.TB, s *Store) {
	seen := map[string]bool{}
	for _, svc := range s.Take().Services {
		require.NotEmpty(t, svc.Ports)
		for i := range svc.Ports {
			p := &svc.Ports[i]
			require.NotEmpty(t, p.Frontends)
			for _, set := range p.Sets {
				for j, b := range set {
					require.True(t, b.Addr.IsValid() && b.Addr.Port() > 0 && b.Addr.Addr().Is6() == p.IPv6)
					require.True(t, j == 0 || set[j-1].Compare(b) < 0, "sorted, no duplicates")
				}
			}
			for j := range p.Frontends {
				fe := &p.Frontends[j]
				require.True(t, fe.IP.IsValid() && !fe.IP.IsUnspecified() && fe.Port > 0 && fe.IP.Is6() == p.IPv6 && !fe.IP.Is4In6())
				require.False(t, seen[p.FrontendAddr(fe).String()], "an address twice")
				seen[p.FrontendAddr(fe).String()] = true
				require.Less(t, max(fe.Inside.Set, fe.Outside.Set), len(p.Sets))
			}
		}
	}
}
