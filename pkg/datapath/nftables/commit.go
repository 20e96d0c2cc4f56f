package nftables

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

const (
	// elementsPerTransaction bounds how long one transaction holds the kernel's lock, some ten milliseconds. A Service
	// with more elements is still one transaction.
	elementsPerTransaction = 8192
	// elementsPerMessage keeps the list of elements below the 64 KiB of a netlink attribute: an IPv6 range with
	// its key, end and headers takes about 130 bytes.
	elementsPerMessage = 400
)

// commit writes the changes, many Services to a transaction, and returns an error for each that could not be written.
func (d *Datapath) commit(ctx context.Context, changes []*change) []error {
	var errs []error
	var batch []*change
	size := 0
	flush := func() {
		errs = append(errs, d.transact(batch)...)
		batch, size = nil, 0
	}
	for _, c := range changes {
		if err := ctx.Err(); err != nil {
			d.adopted = false // the numbers of the rest are not given back one by one
			errs = append(errs, fmt.Errorf("program services: %w", err))
			break
		}
		if err := d.diff(c); err != nil {
			d.adopted = false
			errs = append(errs, &datapath.ServiceError{Service: c.name, Err: err})
			continue
		}
		n := len(c.del) + len(c.add)
		if size > 0 && size+n > d.limit {
			flush()
		}
		batch, size = append(batch, c), size+n
	}
	flush()
	return errs
}

// diff fills in what c deletes and adds, and counts the shared elements as if c were written. If it is not written in the
// end, the next Apply adopts the kernel's state and counts anew.
func (d *Datapath) diff(c *change) error {
	var had, want []element
	var err error
	if c.new != nil {
		if want, err = c.new.elements(); err != nil {
			return err
		}
	}
	if d.strays == nil && c.old != nil {
		if had, err = c.old.elements(); err != nil {
			return err
		}
	}
	c.del, c.add = difference(had, want)
	c.add, c.del = d.share(c.add), d.unshare(c.del)
	if d.strays != nil {
		c.del, c.add = d.strays.claim(c.add)
	}
	return nil
}

// difference compares two sorted lists.
func difference(had, want []element) (del, add []element) {
	for len(had) > 0 && len(want) > 0 {
		switch order := compareElements(had[0], want[0]); {
		case order < 0:
			del, had = append(del, had[0]), had[1:]
		case order > 0:
			add, want = append(add, want[0]), want[1:]
		default:
			had, want = had[1:], want[1:]
		}
	}
	return append(del, had...), append(add, want...)
}

func shareable(e element) bool { return e.set == clusterIPSet || e.set == hairpinSet }

// share counts one more holder of the shared elements in add and keeps only those that had none.
func (d *Datapath) share(add []element) []element {
	kept := add[:0]
	for _, e := range add {
		if shareable(e) {
			d.shared[e]++
			if d.shared[e] > 1 {
				continue
			}
		}
		kept = append(kept, e)
	}
	return kept
}

// unshare is the reverse of share.
func (d *Datapath) unshare(del []element) []element {
	kept := del[:0]
	for _, e := range del {
		if shareable(e) {
			if d.shared[e]--; d.shared[e] > 0 {
				continue
			}
			delete(d.shared, e)
		}
		kept = append(kept, e)
	}
	return kept
}

// transact writes a batch in one transaction. If the kernel refuses it, it is halved until the Service at fault stands alone.
func (d *Datapath) transact(batch []*change) []error {
	if len(batch) == 0 {
		return nil
	}
	err := d.write(batch)
	switch {
	case err == nil:
		for _, c := range batch {
			d.keep(c)
		}
		return nil
	case !refused(err):
		// Whether the kernel took it is not known: look before the next write.
		d.adopted = false
		return []error{fmt.Errorf("write %d services to nftables: %w", len(batch), err)}
	case len(batch) == 1:
		d.adopted = false
		return []error{&datapath.ServiceError{Service: batch[0].name, Err: fmt.Errorf("write nftables elements: %w", err)}}
	}
	half := len(batch) / 2
	return append(d.transact(batch[:half]), d.transact(batch[half:])...)
}

// refused says that the kernel answered, and answered no: nothing of the transaction was done.
func refused(err error) bool {
	var no unix.Errno
	return errors.As(err, &no) && no != unix.ENOBUFS && no != unix.EINTR && no != unix.EAGAIN && no != unix.EBUSY
}

// write sends one transaction: pick chains that are missing, then what goes, then what comes. All of it becomes
// visible at once, so the order only matters for an element whose value changes.
func (d *Datapath) write(batch []*change) error {
	picks := d.addPicks(batch)
	var del, add elementLists
	n := len(picks)
	for _, c := range batch {
		n += len(c.del) + len(c.add)
		for _, e := range c.del {
			del.put(e)
		}
		for _, e := range c.add {
			add.put(e)
		}
	}
	if n == 0 {
		return nil
	}
	err := errors.Join(d.send(&del, (*nftables.Conn).SetDeleteElements), d.send(&add, (*nftables.Conn).SetAddElements))
	if err = errors.Join(err, d.conn.Flush()); err != nil {
		for _, p := range picks {
			delete(d.picks[p.ipv6], p.pick)
		}
		return err
	}
	d.stats.Writes += int64(n)
	return nil
}

// elementLists are elements by family and set.
type elementLists [2][numSets][]nftables.SetElement

func (l *elementLists) put(e element) {
	i := 0
	if e.ipv6 {
		i = 1
	}
	l[i][e.set] = append(l[i][e.set], e.toKernel())
}

func (d *Datapath) send(l *elementLists, do func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error) error {
	for i, f := range d.families {
		for k, elems := range l[i] {
			for len(elems) > 0 {
				n := min(len(elems), elementsPerMessage)
				if err := do(d.conn, f.sets[k], elems[:n]); err != nil {
					return fmt.Errorf("encode elements of %s: %w", setKind(k), err)
				}
				elems = elems[n:]
			}
		}
	}
	return nil
}

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
				d.addPick(p)
				added = append(added, p)
			}
		}
	}
	return added
}

func (d *Datapath) addPick(p pick) {
	f := d.family(p.ipv6)
	d.addChain(f, pickChain(p.modulus), f.pickRules(p.modulus))
	e := element{ipv6: f.ipv6, set: picksMap, key: string(native32(p.pick)), val: pickChain(p.modulus)}
	// It cannot fail: only anonymous sets do.
	_ = d.conn.SetAddElements(f.sets[picksMap], []nftables.SetElement{e.toKernel()})
}

func (d *Datapath) addChain(f *family, name string, rules []rule) {
	chain := d.conn.AddChain(&nftables.Chain{Name: name, Table: f.table})
	for _, r := range rules {
		d.conn.AddRule(&nftables.Rule{Table: f.table, Chain: chain, Exprs: r.parts})
	}
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

// keep records that the kernel has c.
func (d *Datapath) keep(c *change) {
	if c.new != nil {
		d.services[c.name] = c.new
	} else {
		delete(d.services, c.name)
	}
	if c.old != nil {
		still := map[setOf]bool{}
		c.new.eachSet(func(s setOf) { still[s] = true })
		c.old.eachSet(func(s setOf) {
			if !still[s] {
				d.numbers[s.ipv6].release(s.number)
			}
		})
	}
}

func (st *state) eachSet(do func(setOf)) {
	if st == nil {
		return
	}
	for i, sets := range st.sets {
		for _, s := range sets {
			if s.number != 0 {
				do(setOf{st.service.Ports[i].IPv6, s.number})
			}
		}
	}
}

func (d *Datapath) family(ipv6 bool) *family {
	if ipv6 {
		return d.families[1]
	}
	return d.families[0]
}
