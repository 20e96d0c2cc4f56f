package endpoints

import (
	"slices"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// Changed has one token whenever there may be something to Take, never before the source is complete.
func (s *Store) Changed() <-chan struct{} { return s.changed }

// Take returns everything that changed since the last Take; the first time, and after Retry of such, the whole world
// (Update.Full). The caller applies it and comes back: what accumulates meanwhile becomes the next
// update. An update without any content is possible and need not be applied.
func (s *Store) Take() datapath.Update {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.synced {
		return datapath.Update{}
	}
	u := datapath.Update{Full: !s.handed.whole}
	for _, e := range s.settle() {
		s.refresh(e, &u)
	}
	if u.Full {
		u.Services, u.Removed = s.world(), nil
		s.handed.whole = true
	}
	if p := s.handed.localPods; p == nil || !equalLocalPods(p, &s.scene.localPods) {
		s.handed.localPods = &datapath.LocalPods{
			CIDRs:      slices.Clone(s.scene.localPods.CIDRs),
			Interfaces: slices.Clone(s.scene.localPods.Interfaces),
		}
		u.LocalPods = s.handed.localPods
	}
	return u
}

// Retry says that applying u, or a part of it, did not succeed: its Services are handed out again with the next Take,
// and if u was Full, the whole world is. Retry signals Changed at once; waiting before it is up to the caller.
func (s *Store) Retry(u datapath.Update) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u.LocalPods != nil {
		s.handed.localPods = nil
	}
	if u.Full {
		s.handed.whole = false
		s.signal()
		return
	}
	for _, svc := range u.Services {
		s.owe(svc.Name)
	}
	for _, name := range u.Removed {
		s.owe(name)
	}
	s.signal()
}

func (s *Store) owe(name datapath.Name) {
	e := s.entry(name)
	e.owed = true
	s.mark(e)
}

// settle brings the claims of all dirty Services up to date and returns what has to be resolved: these, and those
// that gained or lost an address by it.
func (s *Store) settle() []*entry {
	todo := s.dirty
	s.dirty = nil
	// Only the entries that were dirty themselves can have new claims; those added below did not change.
	for _, e := range todo[:len(todo):len(todo)] {
		var want []datapath.Addr
		var created int64
		if e.svc != nil {
			want, created = s.scene.claims(e.svc), e.svc.created
		}
		for _, m := range s.claims.replace(e, created, want) {
			if !m.dirty {
				m.dirty = true
				todo = append(todo, m)
			}
		}
	}
	slices.SortFunc(todo, func(a, b *entry) int { return a.name.Compare(b.name) })
	return todo
}

// refresh resolves one Service and adds it to the update if the datapath does not have it so already.
func (s *Store) refresh(e *entry, u *datapath.Update) {
	e.dirty = false
	var now *datapath.Service
	if e.svc != nil {
		s.resolved++
		now = s.scene.resolve(e.svc, e.slices, func(a datapath.Addr) bool { return s.claims.owner[a] == e })
	}
	if lost := s.claims.lost(e); e.contested || len(lost) > 0 {
		e.contested = len(lost) > 0
		s.problems.set(stageClaim, serviceObject(e.name), lost)
	}
	switch {
	case now == nil:
		if e.handed != nil || e.owed {
			u.Removed = append(u.Removed, e.name)
		}
	case e.owed || !equalServices(e.handed, now):
		u.Services = append(u.Services, now)
	default:
		now = e.handed
	}
	e.handed, e.owed = now, false
	if e.svc == nil && len(e.slices) == 0 {
		delete(s.entries, e.name)
	}
}

// world returns all Services as they were resolved last.
func (s *Store) world() []*datapath.Service {
	list := make([]*datapath.Service, 0, len(s.entries))
	for _, e := range s.entries {
		if e.handed != nil {
			list = append(list, e.handed)
		}
	}
	slices.SortFunc(list, func(a, b *datapath.Service) int { return a.Name.Compare(b.Name) })
	return list
}
