package ebpf

import (
	"errors"
	"fmt"
	"slices"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// maxBackends is what the programs can search (SEARCH_STEPS in bpf/lookup.h).
const maxBackends = 1 << 20

// wantSet is a backend set and the frontends that lead to it.
type wantSet struct {
	backends  []datapath.Backend
	frontends []frontendKey
}

// plan says what the hooks must know of a Service. canRefuse is whether they can answer for an empty set.
func plan(s *datapath.Service, canRefuse bool) ([]wantSet, error) {
	var sets []wantSet
	var errs []error
	for i := range s.Ports {
		p := &s.Ports[i]
		if p.Protocol != datapath.TCP && p.Protocol != datapath.UDP {
			continue
		}
		planned, err := planPort(p, canRefuse)
		if err != nil {
			errs = append(errs, fmt.Errorf("plan port %q: %w", p.Name, err))
		}
		sets = append(sets, planned...)
	}
	return sets, errors.Join(errs...)
}

func planPort(p *datapath.Port, canRefuse bool) ([]wantSet, error) {
	sets := make([]wantSet, len(p.Sets))
	for i := range p.Frontends {
		f := &p.Frontends[i]
		if err := checkFrontend(p, f); err != nil {
			return nil, err
		}
		if !served(p, f, canRefuse) {
			continue
		}
		s := &sets[f.Inside.Set]
		s.frontends = append(s.frontends, encodeFrontend(p.FrontendAddr(f)))
	}
	kept := sets[:0]
	for i := range sets {
		if len(sets[i].frontends) == 0 {
			continue
		}
		sorted, err := checkBackends(p, p.Sets[i])
		if err != nil {
			return nil, err
		}
		kept = append(kept, wantSet{sorted, sets[i].frontends})
	}
	return kept, nil
}

// served says whether the hooks answer for a frontend. The package comment has the reasons.
func served(p *datapath.Port, f *datapath.Frontend, canRefuse bool) bool {
	switch {
	case len(f.Sources) > 0:
		return false
	case p.Affinity > 0 && !f.IP.IsLoopback():
		return false
	case len(p.Sets[f.Inside.Set]) > 0:
		return true
	}
	return f.Inside.Empty == datapath.Reject && canRefuse
}

func checkFrontend(p *datapath.Port, f *datapath.Frontend) error {
	switch {
	case !f.IP.IsValid() || f.IP.IsUnspecified() || f.IP.Is6() != p.IPv6 || f.IP.Is4In6():
		return fmt.Errorf("frontend %s: no address of the port's family", p.FrontendAddr(f))
	case f.Port == 0:
		return fmt.Errorf("frontend %s: port is 0", p.FrontendAddr(f))
	case f.Inside.Set < 0 || f.Inside.Set >= len(p.Sets):
		return fmt.Errorf("frontend %s: no backend set %d", p.FrontendAddr(f), f.Inside.Set)
	}
	return nil
}

// checkBackends returns the set in the order the programs search by.
func checkBackends(p *datapath.Port, set []datapath.Backend) ([]datapath.Backend, error) {
	if len(set) > maxBackends {
		return nil, fmt.Errorf("backend set of %d is larger than %d", len(set), maxBackends)
	}
	for _, b := range set {
		a := b.Addr.Addr()
		if !a.IsValid() || a.IsUnspecified() || a.Is6() != p.IPv6 || a.Is4In6() || a.Zone() != "" || b.Addr.Port() == 0 {
			return nil, fmt.Errorf("backend %s: no address and port of the port's family", b.Addr)
		}
	}
	if !slices.IsSortedFunc(set, datapath.Backend.Compare) {
		set = slices.SortedFunc(slices.Values(set), datapath.Backend.Compare)
	}
	return set, nil
}

// frontendsOf are the frontends of a Service that make sense, whether planned or not.
func frontendsOf(s *datapath.Service) []frontendKey {
	var keys []frontendKey
	for i := range s.Ports {
		for j := range s.Ports[i].Frontends {
			if f := &s.Ports[i].Frontends[j]; f.IP.IsValid() {
				keys = append(keys, encodeFrontend(s.Ports[i].FrontendAddr(f)))
			}
		}
	}
	return keys
}
