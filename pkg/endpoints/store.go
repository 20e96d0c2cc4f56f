package endpoints

import (
	"cmp"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// Store holds Services, EndpointSlices and the own Node, and says what they ask of a datapath. Its methods may be
// called from several goroutines. The package comment has the contract.
type Store struct {
	cfg     Config
	changed chan struct{}

	mu       sync.Mutex
	entries  map[datapath.Name]*entry
	owners   map[datapath.Name]*entry // by name of the slice
	node     *node
	addrs    []netip.Addr
	scene    *scene
	claims   claims
	problems problems

	synced bool
	dirty  []*entry
	handed struct {
		whole     bool                // a Full update was handed out
		localPods *datapath.LocalPods // as handed out last
	}
	resolved int // how often a Service was resolved; tests count it
}

// entry is what is known of one Service.
type entry struct {
	name   datapath.Name
	svc    *service // nil as long as only slices are known
	slices []*slice // ordered by name
	dirty  bool

	claimed   []datapath.Addr
	claimedAt int64 // creation time the claims were made with
	contested bool  // another Service owns one of them

	handed *datapath.Service // as handed out last; nil if it was not, or as removed
	owed   bool              // the datapath may have something else than handed
}

// NewStore returns an empty store. Parts of the configuration that Config.Validate objects to are ignored.
func NewStore(cfg Config, log *slog.Logger) *Store {
	s := &Store{
		cfg:      cfg,
		changed:  make(chan struct{}, 1),
		entries:  map[datapath.Name]*entry{},
		owners:   map[datapath.Name]*entry{},
		claims:   newClaims(),
		problems: problems{log: log, all: map[problemKey][]fault{}},
	}
	_, faults := cfg.nodePortPrefixes()
	s.problems.set(stageRead, "config", append(faults, cfg.detectFaults()...))
	s.scene = newScene(&s.cfg, nil, nil)
	return s
}

// SetService adds or replaces a Service. The store keeps nothing of o.
func (s *Store) SetService(o *v1.Service) {
	svc, faults := readService(o)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setService(datapath.Name{Namespace: o.Namespace, Name: o.Name}, svc, faults)
}

// DeleteService removes a Service. Its slices stay until they are deleted.
func (s *Store) DeleteService(name datapath.Name) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setService(name, nil, nil)
}

func (s *Store) setService(name datapath.Name, svc *service, faults []fault) {
	s.problems.set(stageRead, serviceObject(name), faults)
	e := s.entries[name]
	if e == nil && svc == nil {
		return
	}
	e = s.entry(name)
	if e.svc.equal(svc) {
		return
	}
	e.svc = svc
	s.mark(e)
}

// SetSlice adds or replaces an EndpointSlice. The store keeps nothing of o.
func (s *Store) SetSlice(o *discovery.EndpointSlice) {
	owner, es, faults := readSlice(o)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setSlice(datapath.Name{Namespace: o.Namespace, Name: o.Name}, owner, es, faults)
}

// DeleteSlice removes an EndpointSlice.
func (s *Store) DeleteSlice(namespace, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setSlice(datapath.Name{Namespace: namespace, Name: name}, datapath.Name{}, nil, nil)
}

// setSlice handles a slice that changes its Service as two changes.
func (s *Store) setSlice(name, owner datapath.Name, es *slice, faults []fault) {
	s.problems.set(stageRead, sliceObject(name), faults)
	if old := s.owners[name]; old != nil && (es == nil || old.name != owner) {
		old.slices = slices.DeleteFunc(old.slices, func(x *slice) bool { return x.name == name.Name })
		delete(s.owners, name)
		s.mark(old)
	}
	if es == nil {
		return
	}
	e := s.entry(owner)
	i, found := slices.BinarySearchFunc(e.slices, es, compareSlices)
	switch {
	case !found:
		e.slices = slices.Insert(e.slices, i, es)
		s.owners[name] = e
	case e.slices[i].equal(es):
		return
	default:
		e.slices[i] = es
	}
	s.mark(e)
}

func compareSlices(a, b *slice) int { return cmp.Compare(a.name, b.name) }

// keepServices removes all Services but these.
func (s *Store) keepServices(keep map[datapath.Name]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, e := range s.entries {
		if e.svc != nil && !keep[name] {
			s.setService(name, nil, nil)
		}
	}
	s.problems.forget(objectService, keptObjects(keep, objectService))
}

// keepSlices removes all slices but these.
func (s *Store) keepSlices(keep map[datapath.Name]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.owners {
		if !keep[name] {
			s.setSlice(name, datapath.Name{}, nil, nil)
		}
	}
	s.problems.forget(objectSlice, keptObjects(keep, objectSlice))
}

// keptObjects tests the name of an object as problems have it.
func keptObjects(keep map[datapath.Name]bool, prefix string) func(string) bool {
	return func(s string) bool {
		namespace, name, _ := strings.Cut(strings.TrimPrefix(s, prefix), "/")
		return keep[datapath.Name{Namespace: namespace, Name: name}]
	}
}

// SetNode adds or replaces the own Node. Another Node is ignored, unless Config.NodeName is empty.
func (s *Store) SetNode(o *v1.Node) {
	n, faults := readNode(o)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.NodeName != "" && o.Name != s.cfg.NodeName {
		return
	}
	if s.node != nil && s.node.name != n.name {
		s.problems.set(stageRead, nodeObject(s.node.name), nil)
	}
	s.problems.set(stageRead, nodeObject(n.name), faults)
	s.node = n
	s.updateScene()
}

// DeleteNode forgets the own Node.
func (s *Store) DeleteNode() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.node == nil {
		return
	}
	s.problems.set(stageRead, nodeObject(s.node.name), nil)
	s.node = nil
	s.updateScene()
}

// SetNodeAddrs says which addresses the node's interfaces have. As long as nobody says so, those of the Node
// object are taken for it.
func (s *Store) SetNodeAddrs(addrs []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addrs = append([]netip.Addr{}, addrs...)
	s.updateScene()
}

// Synced says that the source has handed over its first complete lists. Nothing is handed out before.
func (s *Store) Synced() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.synced {
		s.synced = true
		s.signal()
	}
}

// Problems returns everything that is wrong with the objects as they are now.
func (s *Store) Problems() []Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.problems.list()
}

// report lets a source say what is wrong with one of its files.
func (s *Store) report(object string, faults []fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.problems.set(stageFile, object, faults)
}

// updateScene marks the Services that the change of the node touches.
func (s *Store) updateScene() {
	old, now := s.scene, newScene(&s.cfg, s.node, s.addrs)
	s.scene = now
	all := old.nodeName != now.nodeName || old.zone != now.zone ||
		old.podsKnown(false) != now.podsKnown(false) || old.podsKnown(true) != now.podsKnown(true)
	nodePorts := !slices.Equal(old.nodePorts, now.nodePorts)
	primary := !slices.Equal(old.primary, now.primary)
	if all || nodePorts || primary {
		for _, e := range s.entries {
			if e.svc != nil && (all || nodePorts && e.svc.hasNodePort() || primary && len(e.svc.sources) > 0) {
				s.mark(e)
			}
		}
	}
	if !equalLocalPods(&old.localPods, &now.localPods) {
		s.signal()
	}
}

// entry returns the entry of a Service and makes it if need be.
func (s *Store) entry(name datapath.Name) *entry {
	e := s.entries[name]
	if e == nil {
		e = &entry{name: name}
		s.entries[name] = e
	}
	return e
}

func (s *Store) mark(e *entry) {
	if !e.dirty {
		e.dirty = true
		s.dirty = append(s.dirty, e)
	}
	s.signal()
}

func (s *Store) signal() {
	if !s.synced {
		return
	}
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// What the names of objects in problems begin with.
const (
	objectService = "service "
	objectSlice   = "endpointslice "
)

func serviceObject(n datapath.Name) string { return objectService + n.String() }
func sliceObject(n datapath.Name) string   { return objectSlice + n.String() }
func nodeObject(name string) string        { return "node " + name }
