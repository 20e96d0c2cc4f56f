package endpoints

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// fakeAPI is as much of an API server as list and watch need.
type fakeAPI struct {
	t         testing.TB
	streaming bool // it can stream lists (WatchList)

	mu      sync.Mutex
	version int
	objects map[string]map[string]runtime.Object // by resource, then name
	events  []fakeEvent
	wake    chan struct{} // closed at each event
	queries map[string]url.Values
	accept  string
	held    map[string]chan struct{} // lists of these resources wait for the channel
}

type fakeEvent struct {
	version  int
	resource string
	Type     string         `json:"type"`
	Object   runtime.Object `json:"object"`
}

var listKinds = map[string]string{"services": "ServiceList", "endpointslices": "EndpointSliceList", "nodes": "NodeList"}

func newFakeAPI(t testing.TB) *fakeAPI {
	return &fakeAPI{t: t, objects: map[string]map[string]runtime.Object{}, wake: make(chan struct{}), queries: map[string]url.Values{}, held: map[string]chan struct{}{}}
}

func (f *fakeAPI) put(o runtime.Object) { f.event("ADDED", o) }
func (f *fakeAPI) del(o runtime.Object) { f.event("DELETED", o) }

func (f *fakeAPI) event(kind string, o runtime.Object) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o = o.DeepCopyObject()
	f.version++
	var resource string
	switch o := o.(type) {
	case *v1.Service:
		resource, o.TypeMeta = "services", metav1.TypeMeta{Kind: "Service", APIVersion: "v1"}
	case *v1.Node:
		resource, o.TypeMeta = "nodes", metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}
	case *discovery.EndpointSlice:
		resource, o.TypeMeta = "endpointslices", metav1.TypeMeta{Kind: "EndpointSlice", APIVersion: "discovery.k8s.io/v1"}
	}
	m := o.(metav1.Object)
	m.SetResourceVersion(strconv.Itoa(f.version))
	if f.objects[resource] == nil {
		f.objects[resource] = map[string]runtime.Object{}
	}
	key := m.GetNamespace() + "/" + m.GetName()
	if kind == "DELETED" {
		delete(f.objects[resource], key)
	} else {
		if f.objects[resource][key] != nil {
			kind = "MODIFIED"
		}
		f.objects[resource][key] = o
	}
	f.events = append(f.events, fakeEvent{f.version, resource, kind, o})
	close(f.wake)
	f.wake = make(chan struct{})
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resource, q := path.Base(r.URL.Path), r.URL.Query()
	f.mu.Lock()
	f.queries[resource], f.accept = q, r.Header.Get("Accept")
	held := f.held[resource]
	f.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-r.Context().Done():
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	initial := q.Get("sendInitialEvents") == "true"
	switch {
	case initial && !f.streaming:
		w.WriteHeader(http.StatusUnprocessableEntity)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: metav1.StatusReasonInvalid, Code: 422})
	case q.Get("watch") != "":
		f.watch(w, r, resource, initial)
	default:
		f.mu.Lock()
		defer f.mu.Unlock()
		items := []runtime.Object{}
		for _, o := range f.objects[resource] {
			items = append(items, o)
		}
		version := map[string]string{"endpointslices": "discovery.k8s.io/v1"}[resource]
		if version == "" {
			version = "v1"
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"kind": listKinds[resource], "apiVersion": version,
			"metadata": map[string]any{"resourceVersion": strconv.Itoa(f.version)}, "items": items})
	}
}

func (f *fakeAPI) watch(w http.ResponseWriter, r *http.Request, resource string, initial bool) {
	enc := json.NewEncoder(w)
	from, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if initial {
		f.mu.Lock()
		for _, o := range f.objects[resource] {
			_ = enc.Encode(fakeEvent{Type: "ADDED", Object: o})
		}
		from = f.version
		f.mu.Unlock()
		mark := map[string]runtime.Object{"services": &v1.Service{TypeMeta: metav1.TypeMeta{Kind: "Service", APIVersion: "v1"}},
			"nodes":          &v1.Node{TypeMeta: metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}},
			"endpointslices": &discovery.EndpointSlice{TypeMeta: metav1.TypeMeta{Kind: "EndpointSlice", APIVersion: "discovery.k8s.io/v1"}}}[resource]
		mark.(metav1.Object).SetResourceVersion(strconv.Itoa(from))
		mark.(metav1.Object).SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
		_ = enc.Encode(fakeEvent{Type: "BOOKMARK", Object: mark})
	}
	for {
		f.mu.Lock()
		for _, e := range f.events {
			if e.version > from && e.resource == resource {
				_ = enc.Encode(e)
			}
		}
		from = f.version
		wake := f.wake
		f.mu.Unlock()
		w.(http.Flusher).Flush()
		select {
		case <-wake:
		case <-r.Context().Done():
			return
		}
	}
}

// apiWorld is a store fed by an APISource.
type apiWorld struct {
	*fakeAPI
	server *httptest.Server
	s      *Store
	log    *syncBuffer
	have   map[string]string
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newAPIWorld(t *testing.T, f *fakeAPI) *apiWorld {
	w := &apiWorld{fakeAPI: f, server: httptest.NewServer(f), log: &syncBuffer{}, have: map[string]string{}}
	log := slog.New(slog.NewTextHandler(w.log, nil))
	src, err := NewAPISource(APIOptions{Master: w.server.URL, QPS: 100, Burst: 100}, log)
	require.NoError(t, err)
	w.s = NewStore(nodeConfig, log)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- src.Run(ctx, w.s) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
		w.server.CloseClientConnections()
		w.server.Close()
	})
	return w
}

// wait waits until the Services, by name, satisfy ok.
func (w *apiWorld) wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		apply(w.have, w.s.Take())
		if ok() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s; have %v\n%s", what, w.have, w.log)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func TestAPISource(t *testing.T) {
	for name, streaming := range map[string]bool{"streamed lists": true, "lists": false} {
		t.Run(name, func(t *testing.T) {
			f := newFakeAPI(t)
			f.streaming = streaming
			f.put(testService(1))
			f.put(testSlice(1, 2))
			f.put(testNode("a"))
			w := newAPIWorld(t, f)
			w.wait(t, "the first list", func() bool { return strings.Contains(w.have["svc-1"], "10.244.0.2:8080, 10.244.0.3:8080") })

			f.put(testService(2))
			f.put(testSlice(2, 1))
			w.wait(t, "a new service", func() bool { return strings.Contains(w.have["svc-2"], "10.244.0.2:8080") })
			f.put(testSlice(2, 0))
			w.wait(t, "no endpoint", func() bool { return strings.Contains(w.have["svc-2"], "inside reject") })
			f.del(testService(1))
			w.wait(t, "a deletion", func() bool { return w.have["svc-1"] == "" })
			nodePort := testService(3)
			nodePort.Spec.Ports[0].NodePort = 30003
			f.put(nodePort)
			w.wait(t, "the node's address", func() bool { return strings.Contains(w.have["svc-3"], "NodePort 172.18.0.11:30003") })
			f.del(testNode("a"))
			w.wait(t, "the node's deletion", func() bool { return strings.Contains(w.log.String(), "own node was deleted") })
			require.Contains(t, w.have["svc-3"], "NodePort 172.18.0.11:30003")

			f.mu.Lock()
			defer f.mu.Unlock()
			require.Equal(t, "!service.kubernetes.io/service-proxy-name", f.queries["services"].Get("labelSelector"))
			require.Equal(t, "spec.clusterIP!=None", f.queries["services"].Get("fieldSelector"))
			require.Equal(t, "!service.kubernetes.io/headless", f.queries["endpointslices"].Get("labelSelector"))
			require.Empty(t, f.queries["endpointslices"].Get("fieldSelector"))
			require.Equal(t, "metadata.name=node", f.queries["nodes"].Get("fieldSelector"))
			require.NotContains(t, w.log.String(), "cannot read")
			require.True(t, strings.HasPrefix(f.accept, "application/vnd.kubernetes.protobuf"), f.accept)
		})
	}
}

func TestAPISourceWaitsForAllLists(t *testing.T) {
	for resource := range listKinds {
		t.Run(resource, func(t *testing.T) {
			f := newFakeAPI(t)
			f.put(testService(1))
			f.put(testSlice(1, 2))
			f.held[resource] = make(chan struct{})
			w := newAPIWorld(t, f)
			time.Sleep(200 * time.Millisecond)
			require.Empty(t, w.s.Changed())
			require.Equal(t, datapath.Update{}, w.s.Take())
			close(f.held[resource])
			w.wait(t, "the lists", func() bool { return strings.Contains(w.have["svc-1"], "10.244.0.2:8080, 10.244.0.3:8080") })
			require.Contains(t, w.log.String(), "the own node does not exist")
		})
	}
}

func TestAPISourceOutage(t *testing.T) {
	f := newFakeAPI(t)
	f.streaming = true
	f.put(testService(1))
	f.put(testService(2))
	f.put(testSlice(1, 1))
	f.put(testSlice(2, 1))
	w := newAPIWorld(t, f)
	w.wait(t, "the first list", func() bool { return len(w.have) == 2 })
	addr := w.server.Listener.Addr().String()
	w.server.CloseClientConnections()
	w.server.Listener.Close()
	w.wait(t, "the outage", func() bool { return strings.Contains(w.log.String(), "cannot read") })
	require.Len(t, w.have, 2, "the last state stays")

	f.del(testService(1))
	f.del(testSlice(1, 1))
	f.put(testSlice(2, 2))
	f.put(testService(3))
	// A server that lost its history: everything has to be listed again.
	f.mu.Lock()
	f.events = nil
	f.mu.Unlock()
	l, err := net.Listen("tcp", addr)
	require.NoError(t, err)
	again := &http.Server{Handler: expireOnce(f)}
	go func() { _ = again.Serve(l) }()
	defer again.Close()
	w.wait(t, "the end of the outage", func() bool {
		return w.have["svc-1"] == "" && w.have["svc-3"] != "" && strings.Contains(w.have["svc-2"], "10.244.0.4:8080, 10.244.0.5:8080")
	})
	w.wait(t, "word of the end", func() bool { return strings.Contains(w.log.String(), "API again") })
	require.LessOrEqual(t, strings.Count(w.log.String(), "cannot read"), len(listKinds)+2)
}

// expireOnce refuses the first watch of each resource, as a server does that no longer knows the version.
func expireOnce(f *fakeAPI) http.Handler {
	var seen sync.Map
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if _, before := seen.LoadOrStore(path.Base(r.URL.Path), true); !before && q.Get("watch") != "" && q.Get("sendInitialEvents") == "" {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusGone)
			_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: metav1.StatusReasonExpired, Code: 410})
			return
		}
		f.ServeHTTP(w, r)
	})
}

func TestNewAPISourceErrors(t *testing.T) {
	_, err := NewAPISource(APIOptions{Kubeconfig: "/nowhere/kubeconfig"}, quiet())
	require.ErrorContains(t, err, "read kubernetes client configuration: ")
	_, err = newAPISource(&rest.Config{Host: "http://[bad"}, quiet())
	require.Error(t, err)
}

func TestStrip(t *testing.T) {
	es := testSlice(1, 1)
	es.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "x"}}
	es.Annotations = map[string]string{"a": "b"}
	es.Endpoints[0].TargetRef = &v1.ObjectReference{Name: "pod"}
	o, err := strip(es.DeepCopy())
	require.NoError(t, err)
	require.Equal(t, testSlice(1, 1), o)
}
