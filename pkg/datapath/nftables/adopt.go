package nftables

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/nftables"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// strays are the kernel's elements that no Service has claimed yet.
type strays struct {
	elements map[element]string                 // value by id
	slots    map[setOf]map[int]datapath.Backend // of all sets, claimed or not
	ranges   map[element][]element              // ids of allowed sources by the restricted frontend they belong to
	taken    map[setOf]bool                     // sets that some Service has inherited
}

func newStrays() *strays {
	return &strays{elements: map[element]string{}, slots: map[setOf]map[int]datapath.Backend{},
		ranges: map[element][]element{}, taken: map[setOf]bool{}}
}

func (s *strays) add(e element) {
	s.elements[e.id()] = e.val
	switch e.set {
	case backendsMap:
		n, slot := slotOf(e.key)
		of := setOf{e.ipv6, n}
		if s.slots[of] == nil {
			s.slots[of] = map[int]datapath.Backend{}
		}
		s.slots[of][slot] = datapath.Backend{Addr: backendOf(e.val)}
	case allowedSet:
		s.ranges[e.frontend()] = append(s.ranges[e.frontend()], e.id())
	}
}

// frontend returns the element of restrictedSet that an allowed source belongs to.
func (e element) frontend() element {
	addr := 4
	if e.ipv6 {
		addr = 16
	}
	return element{ipv6: e.ipv6, set: restrictedSet, key: e.key[:max(0, len(e.key)-addr)]}
}

// set implements origin: the set that the kernel's element for a frontend leads to.
func (s *strays) set(a datapath.Addr, inside bool) (slotted, bool) {
	id := element{ipv6: a.Addr().Is6(), set: frontendsMap, key: tupleKey(a)}
	if inside {
		id.set = insideMap
	}
	val, ok := s.elements[id]
	if !ok {
		return slotted{}, false
	}
	n := refOf(val).set()
	have, ok := s.slots[setOf{id.ipv6, n}]
	if n == 0 || !ok {
		return slotted{}, false
	}
	set := slotted{number: n}
	for i := 0; len(set.slots) < len(have); i++ {
		b, ok := have[i]
		if !ok {
			break
		}
		set.slots = append(set.slots, b)
	}
	return set, true
}

// claim takes the wanted elements out of the strays and returns what has to be written: those that are missing, and
// those that have another value, which are deleted first. With them go ranges of sources that are not wanted any more:
// they may overlap new ones, which the kernel would refuse.
func (s *strays) claim(want []element) (del, add []element) {
	for _, e := range want {
		id := e.id()
		val, ok := s.elements[id]
		if ok {
			delete(s.elements, id)
			if val == e.val {
				continue
			}
			id.val = val
			del = append(del, id)
		}
		add = append(add, e)
	}
	for _, e := range want {
		if e.set != allowedSet {
			continue
		}
		for _, id := range s.ranges[e.frontend()] {
			if _, ok := s.elements[id]; ok {
				delete(s.elements, id)
				del = append(del, id)
			}
		}
		delete(s.ranges, e.frontend())
	}
	return del, add
}

// spare leaves to a Service that could not be written what it has in the kernel.
func (s *strays) spare(svc *datapath.Service) {
	for i := range svc.Ports {
		p := &svc.Ports[i]
		for k := range p.Frontends {
			a := p.FrontendAddr(&p.Frontends[k])
			for _, inside := range []bool{false, true} {
				if set, ok := s.set(a, inside); ok {
					for slot := range set.slots {
						delete(s.elements, element{ipv6: p.IPv6, set: backendsMap, key: slotKey(set.number, slot)})
					}
				}
			}
			for _, id := range s.ranges[element{ipv6: p.IPv6, set: restrictedSet, key: tupleKey(a)}] {
				delete(s.elements, id)
			}
			for _, k := range []setKind{frontendsMap, insideMap, rejectedSet, droppedSet, restrictedSet} {
				delete(s.elements, element{ipv6: p.IPv6, set: k, key: tupleKey(a)})
			}
			delete(s.elements, element{ipv6: p.IPv6, set: clusterIPSet, key: string(a.Addr().AsSlice())})
		}
	}
}

// adopt reads what the kernel holds and makes all of it strays.
func (d *Datapath) adopt() error {
	d.strays, d.pending = newStrays(), nil
	d.numbers, d.picks = map[bool]*numbers{}, map[bool]map[uint32]bool{}
	d.shared = map[element]int{}
	for n, st := range d.services {
		d.services[n] = &state{service: st.service}
	}
	for _, f := range d.families {
		d.numbers[f.ipv6], d.picks[f.ipv6] = newNumbers(), map[uint32]bool{}
		if err := d.adoptFamily(f); err != nil {
			return fmt.Errorf("read nftables table %s: %w", f, err)
		}
	}
	return nil
}

func (d *Datapath) adoptFamily(f *family) error {
	chains, err := d.lister.chains(f)
	if err != nil {
		return err
	}
	f.base, f.exists = "", len(chains) > 0
	for _, c := range chains {
		if strings.HasPrefix(c, "base-") {
			f.base = c
		}
	}
	if !f.sameLayout() {
		return nil
	}
	var found []element
	for k := range numSets {
		start := len(found)
		err := d.lister.elements(f, k, func() { found = found[:start] }, func(e element) { found = append(found, e) })
		if err != nil {
			return err
		}
	}
	for _, e := range found {
		if e.set == picksMap {
			d.picks[f.ipv6][uint32(refOf(e.key))] = true
			continue
		}
		d.strays.add(e)
		if e.set == backendsMap {
			n, _ := slotOf(e.key)
			d.numbers[f.ipv6].reserve(n)
		}
	}
	return nil
}

// removeStrays deletes what no Service claimed, frontends before the backends they lead to, and ends the adoption. The
// Services that failed keep what they have; as it is not known what that is, the next update adopts again.
func (d *Datapath) removeStrays(failed []*datapath.Service) error {
	for _, s := range failed {
		d.strays.spare(s)
	}
	var lists elementLists
	for id, val := range d.strays.elements {
		id.val = val
		lists.put(id)
	}
	for k := range numSets {
		for i, f := range d.families {
			for elems := lists[i][k]; len(elems) > 0; {
				chunk := min(len(elems), elementsPerTransaction)
				if err := d.deleteElements(f, k, elems[:chunk]); err != nil {
					d.adopted = false
					return fmt.Errorf("delete %d left-over elements of %s: %w", len(elems), k, err)
				}
				elems = elems[chunk:]
			}
		}
	}
	for of := range d.strays.slots {
		d.numbers[of.ipv6].release(of.number)
	}
	for _, st := range d.services {
		st.eachSet(func(of setOf) { d.numbers[of.ipv6].reserve(of.number) })
	}
	d.strays, d.adopted = nil, len(failed) == 0
	return nil
}

func (d *Datapath) deleteElements(f *family, k setKind, elems []nftables.SetElement) error {
	n := len(elems)
	for len(elems) > 0 {
		n := min(len(elems), elementsPerMessage)
		if err := d.conn.SetDeleteElements(f.sets[k], elems[:n]); err != nil {
			return err
		}
		elems = elems[n:]
	}
	if err := d.conn.flush(); err != nil {
		return err
	}
	d.stats.Writes += int64(n)
	return nil
}

// ensureBase finds out which tables lack the static part, or have another one, or have lost rules of it. It is written
// with the next transaction.
func (d *Datapath) ensureBase() error {
	var errs []error
	d.pending = nil
	for _, f := range d.families {
		want, err := f.baseName(d.opts, d.pods)
		if err != nil {
			return err
		}
		intact := f.base == want
		if intact && d.strays != nil {
			intact, err = d.hasRules(f, append(slices.Clone(chains), hookChains()...)...)
			errs = append(errs, err)
		}
		if !intact {
			d.log.Info("write nftables base", "table", f.String(), "had", f.base, "want", want)
			f.want, f.replace = want, f.exists && !f.sameLayout()
			d.pending = append(d.pending, f)
		}
	}
	return errors.Join(errs...)
}

// hasRules compares the number of rules in some of the static chains with what it should be.
func (d *Datapath) hasRules(f *family, chains ...string) (bool, error) {
	want := map[string]int{}
	for _, r := range f.rules(d.opts, d.pods) {
		want[r.chain]++
	}
	for _, chain := range chains {
		rules, err := d.conn.GetRules(f.table, &nftables.Chain{Name: chain, Table: f.table})
		if err != nil {
			return false, fmt.Errorf("list rules of chain %s: %w", chain, err)
		}
		if len(rules) != want[chain] {
			return false, nil
		}
	}
	return true, nil
}

// writeBase puts the static part into the transaction, with a chain named marker.
func (d *Datapath) writeBase(f *family, marker string) {
	if f.replace {
		d.conn.DelTable(f.table)
	}
	d.conn.AddTable(f.table)
	if f.replace || !f.exists {
		for _, s := range f.sets {
			// It cannot fail: only anonymous sets do.
			_ = d.conn.AddSet(s, nil)
		}
	} else if f.base != "" {
		d.conn.DelChain(&nftables.Chain{Name: f.base, Table: f.table})
	}
	d.conn.AddChain(&nftables.Chain{Name: marker, Table: f.table})
	for _, h := range hooks {
		d.conn.FlushChain(d.conn.AddChain(&nftables.Chain{Name: h.chain, Table: f.table, Type: h.kind, Hooknum: h.hook, Priority: h.priority}))
	}
	for _, c := range chains {
		d.conn.FlushChain(d.conn.AddChain(&nftables.Chain{Name: c, Table: f.table}))
	}
	for n := uint32(1); n <= readyPicks; n++ {
		d.picks[f.ipv6][n] = true
	}
	for _, n := range slices.Sorted(maps.Keys(d.picks[f.ipv6])) { // pick-1 first: the others go there
		d.addPick(f, pick{f.ipv6, n, modulusOf(n)})
	}
	for _, r := range f.rules(d.opts, d.pods) {
		d.conn.AddRule(&nftables.Rule{Table: f.table, Chain: &nftables.Chain{Name: r.chain, Table: f.table}, Exprs: r.parts})
	}
}

// sameLayout says that the table in the kernel has this version's sets.
func (f *family) sameLayout() bool { return strings.HasPrefix(f.base, layoutPrefix()) }

func layoutPrefix() string { return fmt.Sprintf("base-v%d-", layoutVersion) }

// String returns the family and name of the table, as nft prints them.
func (f *family) String() string {
	if f.ipv6 {
		return "ip6 " + f.table.Name
	}
	return "ip " + f.table.Name
}
