package nftables

import (
	"context"
	"errors"
	"fmt"
	"math"

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

// commit writes the changes, many Services to a transaction. It returns an error for each Service that the kernel refused,
// and one that concerns all if it had to stop.
func (d *Datapath) commit(ctx context.Context, changes []*change) (refused []error, err error) {
	for _, c := range changes {
		d.diff(c)
	}
	batch, changes := handovers(changes)
	size := elementsOf(batch)
	flush := func() error {
		more, err := d.transact(batch)
		refused = append(refused, more...)
		batch, size = nil, 0
		return err
	}
	for _, c := range changes {
		if err := ctx.Err(); err != nil {
			return refused, fmt.Errorf("program services: %w", err)
		}
		n := elementsOf([]*change{c})
		if size > 0 && size+n > d.limit() {
			if err := flush(); err != nil {
				return refused, err
			}
		}
		batch, size = append(batch, c), size+n
	}
	return refused, flush()
}

func elementsOf(changes []*change) (n int) {
	for _, c := range changes {
		n += len(c.del) + len(c.add)
	}
	return n
}

// handovers separates the changes between which a frontend passes: they must be in one transaction, or the frontend would
// be gone, or refused, for a moment or for good.
func handovers(changes []*change) (together, rest []*change) {
	from := map[element]int{}
	for i, c := range changes {
		for _, e := range c.del {
			from[e.id()] = i
		}
	}
	passes := map[int]bool{}
	for i, c := range changes {
		for _, e := range c.add {
			if j, ok := from[e.id()]; ok && i != j {
				passes[i], passes[j] = true, true
			}
		}
	}
	if len(passes) == 0 {
		return nil, changes
	}
	for i, c := range changes {
		if passes[i] {
			together = append(together, c)
		} else {
			rest = append(rest, c)
		}
	}
	return together, rest
}

// limit is how many elements go into one transaction. A table that replaces another must be complete at once.
func (d *Datapath) limit() int {
	for _, f := range d.pending {
		if f.replace {
			return math.MaxInt
		}
	}
	return elementsPerTransaction
}

// diff fills in what c deletes and adds, and counts the shared elements as if c were written.
func (d *Datapath) diff(c *change) {
	var had []element
	if d.strays == nil && c.old != nil {
		// It was planned before, so it cannot fail.
		had, _ = c.old.elements()
	}
	c.del, c.add = difference(had, c.want)
	c.add, c.del = d.share(c.add), d.unshare(c.del)
	if d.strays != nil {
		c.del, c.add = d.strays.claim(c.add)
	}
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

// shareable says that several Services may have the element: it has no value they could disagree about. Two Services have
// the element of a frontend for the moment in which it passes from one to the other.
func (e element) shareable() bool { return e.val == "" }

// share counts one more holder of the shared elements in add and keeps only those that had none.
func (d *Datapath) share(add []element) []element {
	kept := add[:0]
	for _, e := range add {
		if e.shareable() {
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
		if e.shareable() {
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
func (d *Datapath) transact(batch []*change) (refused []error, err error) {
	err = d.write(batch)
	switch {
	case err == nil:
		for _, c := range batch {
			d.keep(c)
		}
		return nil, nil
	case !isRefusal(err) || len(batch) == 0 || !d.baseIsFine():
		return nil, fmt.Errorf("write %d services to nftables: %w", len(batch), err)
	case len(batch) == 1:
		// The shared elements were counted as if it were written: count anew with the next update.
		d.adopted = false
		c := batch[0]
		d.giveBack(c.fresh)
		return []error{&datapath.ServiceError{Service: c.name, Err: fmt.Errorf("write nftables elements: %w", err)}}, nil
	}
	half := len(batch) / 2
	if refused, err = d.transact(batch[:half]); err != nil {
		return refused, err
	}
	more, err := d.transact(batch[half:])
	return append(refused, more...), err
}

// baseIsFine says that no static part is to blame: none is due, or it can be written alone. One that replaces another
// cannot be tried alone, as it would take away all Services.
func (d *Datapath) baseIsFine() bool {
	return len(d.pending) == 0 || d.limit() == math.MaxInt || d.write(nil) == nil
}

// isRefusal says that the kernel answered that it does not want some element: nothing of the transaction was done, and the
// others are not to blame. Everything else (a table that is gone, no memory, no answer) concerns all.
func isRefusal(err error) bool {
	for _, no := range []unix.Errno{unix.EEXIST, unix.EINVAL, unix.ENOTEMPTY, unix.EBUSY, unix.EMSGSIZE, unix.E2BIG, unix.ERANGE} {
		if errors.Is(err, no) {
			return true
		}
	}
	return false
}

// write sends one transaction: the static part if it is due, pick chains that are missing, then what goes, then what
// comes. All of it becomes visible at once, so the order only matters for an element whose value changes.
func (d *Datapath) write(batch []*change) error {
	for _, f := range d.pending {
		d.writeBase(f, f.want)
	}
	picks := d.addPicks(batch)
	var del, add elementLists
	n := len(picks) + len(d.pending)
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
	if err = errors.Join(err, d.conn.flush()); err != nil {
		for _, p := range picks {
			delete(d.picks[p.ipv6], p.pick)
		}
		return err
	}
	for _, f := range d.pending {
		f.base, f.exists = f.want, true
	}
	d.pending = nil
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
				if err := do(d.conn.Conn, f.sets[k], elems[:n]); err != nil {
					return fmt.Errorf("encode elements of %s: %w", setKind(k), err)
				}
				elems = elems[n:]
			}
		}
	}
	return nil
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
