package nftables

import "github.com/google/nftables"

// readyPicks is how many pick chains a table has from the start: a Service with up to that many backends adds elements only.
const readyPicks = 16

// pick is a pick chain of one family.
type pick struct {
	ipv6          bool
	pick, modulus uint32
}

// addPicks puts the chains into the transaction that this batch needs and the table lacks, and returns them: one
// for each number of backends that no Service had before.
func (d *Datapath) addPicks(batch []*change) []pick {
	var added []pick
	for _, c := range batch {
		for _, p := range c.picks() {
			if !d.picks[p.ipv6][p.pick] {
				d.picks[p.ipv6][p.pick] = true
				d.addPick(d.family(p.ipv6), p)
				added = append(added, p)
			}
		}
	}
	return added
}

// addPick writes a pick chain, whether it is there or not.
func (d *Datapath) addPick(f *family, p pick) {
	chain := d.conn.AddChain(&nftables.Chain{Name: pickChain(p.modulus), Table: f.table})
	d.conn.FlushChain(chain)
	for _, r := range f.pickRules(p.modulus) {
		d.conn.AddRule(&nftables.Rule{Table: f.table, Chain: chain, Exprs: r.parts})
	}
	e := element{ipv6: f.ipv6, set: picksMap, key: string(native32(p.pick)), val: pickChain(p.modulus)}
	// It cannot fail: only anonymous sets do.
	_ = d.conn.SetAddElements(f.sets[picksMap], []nftables.SetElement{e.toKernel()})
}

// picks returns the pick chains the new state of a Service draws from.
func (c *change) picks() []pick {
	if c.new == nil {
		return nil
	}
	var all []pick
	for i, sets := range c.new.sets {
		for _, s := range sets {
			if len(s.slots) > 0 {
				n, modulus := pickFor(len(s.slots))
				all = append(all, pick{c.new.service.Ports[i].IPv6, n, modulus})
			}
		}
	}
	return all
}
