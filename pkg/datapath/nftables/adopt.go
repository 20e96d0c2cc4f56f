package nftables

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"

	"github.com/google/nftables"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// strays are the kernel's elements that no Service has claimed yet.
type strays struct {
	elements map[element]string // value by id
	slots    map[setOf]map[int]datapath.Backend
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
// those that have another value, which are deleted first.
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
	return del, add
}

// adopt reads what the kernel holds and makes all of it strays.
func (d *Datapath) adopt() error {
	d.strays = &strays{elements: map[element]string{}, slots: map[setOf]map[int]datapath.Backend{}}
	d.numbers, d.picks = map[bool]*numbers{}, map[bool]map[uint32]bool{}
	d.shared = map[element]int{}
	d.limit = elementsPerTransaction
	for n, st := range d.services {
		d.services[n] = &state{service: st.service}
	}
	for _, f := range d.families {
		d.numbers[f.ipv6], d.picks[f.ipv6] = newNumbers(), map[uint32]bool{}
		f.base = ""
		if err := d.adoptFamily(f); err != nil {
			return fmt.Errorf("read nftables table %s: %w", f, err)
		}
	}
	return nil
}

func (d *Datapath) adoptFamily(f *family) error {
	chains, err := d.chainsOf(f)
	if err != nil {
		return err
	}
	for _, c := range chains {
		if strings.HasPrefix(c, "base-") {
			f.base = c
		}
	}
	f.exists = len(chains) > 0
	if !f.sameLayout() {
		return nil
	}
	var found []element
	for k := range numSets {
		start := len(found)
		err := d.lister.each(f, k, func() { found = found[:start] }, func(e element) { found = append(found, e) })
		if err != nil {
			return err
		}
	}
	for _, e := range found {
		d.adoptElement(f, e)
	}
	return nil
}

func (d *Datapath) adoptElement(f *family, e element) {
	switch e.set {
	case picksMap:
		d.picks[f.ipv6][uint32(refOf(e.key))] = true
		return
	case backendsMap:
		n, slot := slotOf(e.key)
		of := setOf{f.ipv6, n}
		d.numbers[f.ipv6].reserve(n)
		if d.strays.slots[of] == nil {
			d.strays.slots[of] = map[int]datapath.Backend{}
		}
		d.strays.slots[of][slot] = datapath.Backend{Addr: backendOf(e.val)}
	}
	d.strays.elements[e.id()] = e.val
}

// chainsOf lists the chains of the family's table; none if there is no such table.
func (d *Datapath) chainsOf(f *family) ([]string, error) {
	all, err := d.conn.ListChainsOfTableFamily(f.table.Family)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	var names []string
	for _, c := range all {
		if c.Table.Name == f.table.Name {
			names = append(names, c.Name)
		}
	}
	return names, nil
}

// removeStrays deletes what no Service claimed, frontends before the backends they lead to, and ends the adoption.
func (d *Datapath) removeStrays() error {
	var lists elementLists
	n := 0
	for id, val := range d.strays.elements {
		id.val = val
		lists.put(id)
		n++
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
	d.strays, d.adopted = nil, true
	return nil
}

func (d *Datapath) deleteElements(f *family, k setKind, elems []nftables.SetElement) error {
	d.stats.Writes += int64(len(elems))
	for len(elems) > 0 {
		n := min(len(elems), elementsPerMessage)
		if err := d.conn.SetDeleteElements(f.sets[k], elems[:n]); err != nil {
			return err
		}
		elems = elems[n:]
	}
	return d.conn.Flush()
}

// ensureBase writes the static part of the tables where it is missing or another one. The marker chain of base.go
// goes with it in one transaction.
func (d *Datapath) ensureBase() error {
	for _, f := range d.families {
		want, err := f.baseName(d.opts, d.pods)
		if err != nil {
			return err
		}
		if f.base == want {
			continue
		}
		d.log.Info("write nftables base", "table", f.String(), "had", f.base, "want", want)
		replace := f.exists && !f.sameLayout()
		d.writeBase(f, want, replace)
		if replace {
			// The old table works until the new one is complete: everything goes into one transaction.
			d.limit = math.MaxInt
		} else if err := d.conn.Flush(); err != nil {
			d.adopted = false
			return fmt.Errorf("write nftables table %s: %w", f, err)
		}
		f.base, f.exists = want, true
	}
	return nil
}

func (d *Datapath) writeBase(f *family, marker string, replace bool) {
	if replace {
		d.conn.DelTable(f.table)
	}
	d.conn.AddTable(f.table)
	create := replace || f.base == ""
	if create {
		for _, s := range f.sets {
			// It cannot fail: only anonymous sets do.
			_ = d.conn.AddSet(s, nil)
		}
	} else {
		d.conn.DelChain(&nftables.Chain{Name: f.base, Table: f.table})
	}
	d.conn.AddChain(&nftables.Chain{Name: marker, Table: f.table})
	for _, h := range hooks {
		d.conn.AddChain(&nftables.Chain{Name: h.chain, Table: f.table, Type: h.kind, Hooknum: h.hook, Priority: h.priority})
		d.flushChain(f, h.chain, create)
	}
	for _, c := range chains {
		d.conn.AddChain(&nftables.Chain{Name: c, Table: f.table})
		d.flushChain(f, c, create)
	}
	for n := range d.picks[f.ipv6] {
		p := pick{f.ipv6, n, modulusOf(n)}
		d.flushChain(f, pickChain(p.modulus), create)
		d.addPick(p)
	}
	for n := uint32(1); n <= readyPicks; n++ {
		if !d.picks[f.ipv6][n] {
			d.picks[f.ipv6][n] = true
			d.addPick(pick{f.ipv6, n, n})
		}
	}
	for _, r := range f.rules(d.opts, d.pods) {
		d.conn.AddRule(&nftables.Rule{Table: f.table, Chain: &nftables.Chain{Name: r.chain, Table: f.table}, Exprs: r.parts})
	}
	d.stats.Writes++
}

func (d *Datapath) flushChain(f *family, name string, isNew bool) {
	if !isNew {
		d.conn.FlushChain(&nftables.Chain{Name: name, Table: f.table})
	}
}

// readyPicks is how many pick chains a table has from the start: a Service with up to that many backends adds elements only.
const readyPicks = 16

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
