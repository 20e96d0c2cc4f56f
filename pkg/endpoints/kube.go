package endpoints

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// APIOptions say where the Kubernetes API is. With neither Kubeconfig nor Master it is that of the cluster this process
// runs in.
type APIOptions struct {
	Kubeconfig string  // path of a kubeconfig file
	Master     string  // URL of the API server; overrides the one in the kubeconfig file
	QPS        float32 // requests a second; 0 is client-go's default
	Burst      int
}

// APISource reads from the Kubernetes API. While the API does not answer, the store keeps what it has.
//
// It is made of reflectors that feed the store directly: there is no cache beside the store.
type APISource struct {
	core, discovery rest.Interface
	log             *slog.Logger
}

// NewAPISource reads the configuration of the client. It does not connect.
func NewAPISource(o APIOptions, log *slog.Logger) (*APISource, error) {
	c, err := clientcmd.BuildConfigFromFlags(o.Master, o.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubernetes client configuration: %w", err)
	}
	c.QPS, c.Burst = o.QPS, o.Burst
	c.UserAgent = "lbproxy"
	c.ContentType = runtime.ContentTypeProtobuf
	c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	return newAPISource(c, log)
}

// newAPISource makes clients of just the two API groups; a full clientset would bring every type of Kubernetes.
func newAPISource(c *rest.Config, log *slog.Logger) (*APISource, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1.AddToScheme, discovery.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("register kubernetes types: %w", err)
		}
	}
	codecs := serializer.NewCodecFactory(scheme).WithoutConversion()
	client := func(gv schema.GroupVersion, path string) (rest.Interface, error) {
		c := rest.CopyConfig(c)
		c.GroupVersion, c.APIPath, c.NegotiatedSerializer = &gv, path, codecs
		r, err := rest.RESTClientFor(c)
		if err != nil {
			return nil, fmt.Errorf("make client of %s: %w", gv, err)
		}
		return r, nil
	}
	core, err := client(v1.SchemeGroupVersion, "/api")
	if err != nil {
		return nil, err
	}
	disco, err := client(discovery.SchemeGroupVersion, "/apis")
	if err != nil {
		return nil, err
	}
	return &APISource{core: core, discovery: disco, log: log}, nil
}

// Run hands the objects to s until ctx ends. The store counts as synced when Services, EndpointSlices and, if the node's
// name is known, the own Node were listed once. A Node that does not exist is no obstacle.
func (a *APISource) Run(ctx context.Context, s *Store) error {
	// client-go logs every failed attempt; outage says it once.
	ctx = klog.NewContext(ctx, logr.Discard())
	outage := &outage{log: a.log}
	feeds := []*feed{
		{client: a.core, resource: "services", example: &v1.Service{}, sink: serviceSink{s},
			labels: "!" + labelProxyName, fields: fields.OneTermNotEqualSelector("spec.clusterIP", v1.ClusterIPNone)},
		{client: a.discovery, resource: "endpointslices", example: &discovery.EndpointSlice{}, sink: sliceSink{s},
			labels: "!" + labelHeadless, fields: fields.Everything()},
	}
	if name := s.cfg.NodeName; name != "" {
		feeds = append(feeds, &feed{client: a.core, resource: "nodes", example: &v1.Node{}, sink: &nodeSink{Store: s, log: a.log},
			fields: fields.OneTermEqualSelector(metav1.ObjectNameField, name)})
	} else {
		a.log.Warn("no node name is configured: no endpoint counts as local")
	}
	for _, f := range feeds {
		f.outage, f.listed = outage, make(chan struct{})
		// Not waited for: client-go sleeps through the end of ctx while it backs off.
		go f.run(ctx)
	}
	for _, f := range feeds {
		select {
		case <-f.listed:
		case <-ctx.Done():
			return nil
		}
	}
	s.Synced()
	<-ctx.Done()
	return nil
}

// sink takes the objects of one kind.
type sink interface {
	set(o any)
	remove(o any)
	// replace makes list the only objects of the kind.
	replace(list []any)
}

// feed is one reflector. It is the store that the reflector writes to, and the client it reads from.
type feed struct {
	client   rest.Interface
	resource string
	example  runtime.Object
	labels   string
	fields   fields.Selector
	sink     sink
	outage   *outage

	listed chan struct{} // closed after the first complete list
	once   sync.Once
}

func (f *feed) run(ctx context.Context) {
	lw := cache.NewFilteredListWatchFromClient(f.client, f.resource, metav1.NamespaceAll, func(o *metav1.ListOptions) {
		o.LabelSelector, o.FieldSelector = f.labels, f.fields.String()
	})
	list, watchFrom := lw.ListWithContextFunc, lw.WatchFuncWithContext
	lw.ListWithContextFunc = func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		l, err := list(ctx, o)
		f.outage.note(ctx, f.resource, err)
		return l, err
	}
	lw.WatchFuncWithContext = func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		w, err := watchFrom(ctx, o)
		f.outage.note(ctx, f.resource, err)
		return w, err
	}
	// client-go's own limit of 30 s, doubled by jitter, would leave a node behind for a minute after a short outage.
	// This is at most five attempts a second by a node, and a Service made right after an outage is served within one.
	backoff := &wait.Backoff{Duration: 50 * time.Millisecond, Cap: 600 * time.Millisecond, Steps: 10, Factor: 1.5, Jitter: 0.5}
	discard := logr.Discard()
	cache.NewReflectorWithOptions(lw, f.example, f, cache.ReflectorOptions{
		Name: f.resource, Logger: &discard, Backoff: backoff,
	}).RunWithContext(ctx)
}

// Add is part of cache.ReflectorStore.
func (f *feed) Add(o any) error { f.sink.set(o); return nil }

// Update is part of cache.ReflectorStore.
func (f *feed) Update(o any) error { f.sink.set(o); return nil }

// Delete is part of cache.ReflectorStore.
func (f *feed) Delete(o any) error { f.sink.remove(o); return nil }

// Replace is part of cache.ReflectorStore; it is called with each complete list.
func (f *feed) Replace(list []any, _ string) error {
	f.sink.replace(list)
	f.once.Do(func() { close(f.listed) })
	return nil
}

// Resync is part of cache.ReflectorStore.
func (f *feed) Resync() error { return nil }

// Transformer makes client-go strip objects while it collects a streamed list.
func (f *feed) Transformer() cache.TransformFunc { return strip }

// strip drops what is never read and may be large.
func strip(o any) (any, error) {
	if m, ok := o.(metav1.Object); ok {
		m.SetManagedFields(nil)
		m.SetAnnotations(nil)
		m.SetOwnerReferences(nil)
		m.SetFinalizers(nil)
	}
	switch o := o.(type) {
	case *v1.Service:
		o.Spec.Selector, o.Status.Conditions = nil, nil
	case *discovery.EndpointSlice:
		for i := range o.Endpoints {
			e := &o.Endpoints[i]
			e.TargetRef, e.DeprecatedTopology, e.Hostname, e.Zone = nil, nil, nil, nil
		}
	case *v1.Node:
		o.Status = v1.NodeStatus{Addresses: o.Status.Addresses}
	}
	return o, nil
}

type serviceSink struct{ *Store }

func (s serviceSink) set(o any) { s.SetService(o.(*v1.Service)) }

func (s serviceSink) remove(o any) {
	svc := o.(*v1.Service)
	s.DeleteService(datapath.Name{Namespace: svc.Namespace, Name: svc.Name})
}

func (s serviceSink) replace(list []any) {
	keep := make(map[datapath.Name]bool, len(list))
	for _, o := range list {
		svc := o.(*v1.Service)
		keep[datapath.Name{Namespace: svc.Namespace, Name: svc.Name}] = true
		s.SetService(svc)
	}
	s.keepServices(keep)
}

type sliceSink struct{ *Store }

func (s sliceSink) set(o any) { s.SetSlice(o.(*discovery.EndpointSlice)) }

func (s sliceSink) remove(o any) {
	es := o.(*discovery.EndpointSlice)
	s.DeleteSlice(es.Namespace, es.Name)
}

func (s sliceSink) replace(list []any) {
	keep := make(map[datapath.Name]bool, len(list))
	for _, o := range list {
		es := o.(*discovery.EndpointSlice)
		keep[datapath.Name{Namespace: es.Namespace, Name: es.Name}] = true
		s.SetSlice(es)
	}
	s.keepSlices(keep)
}

// nodeSink keeps the last state of a Node that is gone, as kube-proxy does: the node still carries traffic.
type nodeSink struct {
	*Store
	log     *slog.Logger
	missing bool // it was said that there is none
}

func (s *nodeSink) set(o any) { s.SetNode(o.(*v1.Node)) }

func (s *nodeSink) remove(any) {
	s.log.Warn("the own node was deleted, keeping its last state", "node", s.cfg.NodeName)
}

func (s *nodeSink) replace(list []any) {
	if len(list) == 0 && !s.missing {
		s.missing = true
		s.log.Warn("the own node does not exist: no zone, and the interfaces' addresses for NodePorts", "node", s.cfg.NodeName)
	}
	for _, o := range list {
		s.set(o)
	}
}

// outage says once when a resource cannot be read any more and once when it can be again.
type outage struct {
	log  *slog.Logger
	mu   sync.Mutex
	away map[string]time.Time // since when, by resource
}

func (o *outage) note(ctx context.Context, resource string, err error) {
	// A server that cannot stream lists or forgot a version has answered; client-go takes the next way.
	answered := apierrors.IsInvalid(err) || apierrors.IsResourceExpired(err) || apierrors.IsGone(err)
	if ctx.Err() != nil || answered {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	since, away := o.away[resource]
	switch {
	case err != nil && !away:
		if o.away == nil {
			o.away = map[string]time.Time{}
		}
		o.away[resource] = time.Now()
		o.log.Warn("cannot read from the kubernetes API, keeping the last state", "resource", resource, "err", err)
	case err == nil && away:
		delete(o.away, resource)
		o.log.Info("reading from the kubernetes API again", "resource", resource, "after", time.Since(since).Round(time.Millisecond))
	}
}
