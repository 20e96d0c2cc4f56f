package nftables

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// state is a Service as the kernel has it: which number each of its backend sets has, and which backend lies in
// which slot.
type state struct {
	service *datapath.Service
	sets    [][]slotted // by port, then by set, as in service
}

// slotted is a backend set with its number and the order of its slots. An empty set has no number.
type slotted struct {
	number setNumber
	slots  []datapath.Backend
}

// origin answers what the kernel holds now, so that a set keeps its number and its backends their slots.
type origin interface {
	// set returns the set a frontend leads to, seen from inside or outside.
	set(a datapath.Addr, inside bool) (slotted, bool)
}

// assign gives the sets of a Service their numbers and slots, staying as close to what is there as it can. Numbers for
// new sets come from fresh. No number in taken is inherited; those of the Service are added to it.
func assign(s *datapath.Service, from origin, taken map[setOf]bool, fresh func(ipv6 bool) (setNumber, error)) (*state, error) {
	st := &state{service: s, sets: make([][]slotted, len(s.Ports))}
	for i := range s.Ports {
		p := &s.Ports[i]
		st.sets[i] = make([]slotted, len(p.Sets))
		for j, want := range p.Sets {
			if len(want) == 0 {
				continue
			}
			have, ok := inherit(p, j, from, taken)
			if !ok {
				n, err := fresh(p.IPv6)
				if err != nil {
					return nil, err
				}
				have = slotted{number: n}
			}
			taken[setOf{p.IPv6, have.number}] = true
			st.sets[i][j] = slotted{have.number, reslot(have.slots, want)}
		}
	}
	return st, nil
}

// inherit finds the set that some frontend of set j leads to today and that is not taken.
func inherit(p *datapath.Port, j int, from origin, taken map[setOf]bool) (slotted, bool) {
	for k := range p.Frontends {
		f := &p.Frontends[k]
		for _, inside := range []bool{false, true} {
			route := f.Outside
			if inside {
				route = f.Inside
			}
			if route.Set != j {
				continue
			}
			have, ok := from.set(p.FrontendAddr(f), inside)
			if ok && !taken[setOf{p.IPv6, have.number}] {
				return have, true
			}
		}
	}
	return slotted{}, false
}

// reslot puts the wanted backends into slots, leaving those that stay where they are: a backend that goes is replaced by
// a new one or by the last, so that a change of one backend touches at most two slots.
func reslot(have, want []datapath.Backend) []datapath.Backend {
	missing := make(map[netip.AddrPort]datapath.Backend, len(want))
	for _, b := range want {
		missing[b.Addr] = b
	}
	slots := make([]datapath.Backend, len(want))
	var holes []int
	for i := range slots {
		if i < len(have) {
			if b, ok := missing[have[i].Addr]; ok {
				slots[i] = b
				delete(missing, b.Addr)
				continue
			}
		}
		holes = append(holes, i)
	}
	rest := make([]datapath.Backend, 0, len(missing))
	for _, b := range missing {
		rest = append(rest, b)
	}
	slices.SortFunc(rest, datapath.Backend.Compare)
	for i, b := range rest {
		slots[holes[i]] = b
	}
	return slots
}

// setOf names a set: numbers are counted per family.
type setOf struct {
	ipv6   bool
	number setNumber
}

// elements returns everything the kernel must hold for a Service, each element once.
func (st *state) elements() ([]element, error) {
	var all []element
	for i := range st.service.Ports {
		p := &st.service.Ports[i]
		for _, set := range st.sets[i] {
			all = appendSet(all, p.IPv6, set)
		}
		for k := range p.Frontends {
			f := &p.Frontends[k]
			// A packet to a loopback address cannot be sent anywhere else by NAT.
			if f.IP.IsLoopback() {
				continue
			}
			profile, err := profileOf(f)
			if err != nil {
				return nil, err
			}
			all = appendFrontend(all, p, f, profile, st.sets[i])
		}
	}
	slices.SortFunc(all, compareElements)
	return slices.Compact(all), nil
}

func appendSet(all []element, ipv6 bool, set slotted) []element {
	for slot, b := range set.slots {
		all = append(all, element{ipv6: ipv6, set: backendsMap, key: slotKey(set.number, slot), val: backendVal(b.Addr)})
		if b.Local {
			ip := string(b.Addr.Addr().AsSlice())
			all = append(all, element{ipv6: ipv6, set: hairpinSet, key: ip + ip})
		}
	}
	return all
}

func appendFrontend(all []element, p *datapath.Port, f *datapath.Frontend, profile uint32, sets []slotted) []element {
	add := func(set setKind, key, val string) {
		all = append(all, element{ipv6: p.IPv6, set: set, key: key, val: val})
	}
	key := tupleKey(p.FrontendAddr(f))
	inside, outside := sets[f.Inside.Set], sets[f.Outside.Set]
	split := profile == splitLocal && len(inside.slots) > 0
	if len(outside.slots) > 0 || split || len(f.Sources) > 0 {
		add(frontendsMap, key, newRef(profile, outside.number, len(outside.slots)).val())
	}
	if split {
		add(insideMap, key, newRef(maskNobody, inside.number, len(inside.slots)).val())
	}
	switch {
	case len(outside.slots) > 0:
	case f.Outside.Empty == datapath.Drop:
		add(droppedSet, key, "")
	default:
		add(rejectedSet, key, "")
	}
	if f.Kind == datapath.ClusterIP {
		add(clusterIPSet, string(f.IP.AsSlice()), "")
	}
	if len(f.Sources) > 0 {
		add(restrictedSet, key, "")
	}
	for _, prefix := range withoutNested(f.Sources) {
		all = append(all, element{ipv6: p.IPv6, set: allowedSet,
			key: key + string(prefix.Addr().AsSlice()), end: key + string(lastAddr(prefix).AsSlice())})
	}
	return all
}

// withoutNested drops prefixes that lie within another one: the kernel refuses ranges that overlap.
func withoutNested(prefixes []netip.Prefix) []netip.Prefix {
	sorted := make([]netip.Prefix, 0, len(prefixes))
	for _, p := range prefixes {
		sorted = append(sorted, p.Masked())
	}
	slices.SortFunc(sorted, func(a, b netip.Prefix) int { return cmp.Compare(a.Bits(), b.Bits()) })
	var kept []netip.Prefix
	for _, p := range sorted {
		if !slices.ContainsFunc(kept, func(k netip.Prefix) bool { return k.Overlaps(p) }) {
			kept = append(kept, p)
		}
	}
	return kept
}

func compareElements(a, b element) int {
	if a.ipv6 != b.ipv6 {
		if b.ipv6 {
			return -1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(a.set, b.set), cmp.Compare(a.key, b.key), cmp.Compare(a.end, b.end), cmp.Compare(a.val, b.val))
}

// numbers hands out set numbers of one family. 0 is no set. A number is used again only when there are no fresh ones
// left, and the oldest first: a packet that is between two lookups must not find another Service's set.
type numbers struct {
	free []setNumber
	used map[setNumber]bool
	next setNumber
}

func newNumbers() *numbers { return &numbers{used: map[setNumber]bool{}, next: 1} }

func (n *numbers) take() (setNumber, error) {
	for ; n.next < maxSets; n.next++ {
		if !n.used[n.next] {
			n.used[n.next] = true
			n.next++
			return n.next - 1, nil
		}
	}
	for len(n.free) > 0 {
		got := n.free[0]
		n.free = n.free[1:]
		if !n.used[got] {
			n.used[got] = true
			return got, nil
		}
	}
	return 0, fmt.Errorf("number a backend set: all %d numbers are taken", maxSets-1)
}

func (n *numbers) reserve(s setNumber) { n.used[s] = true }

func (n *numbers) release(s setNumber) {
	if n.used[s] {
		delete(n.used, s)
		n.free = append(n.free, s)
	}
}
