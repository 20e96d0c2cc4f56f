package nftables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/google/nftables"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// layoutVersion changes with the meaning of a set, a map or a static rule. A table of another layout is replaced as a whole, in
// one transaction.
const layoutVersion = 1

// Options says where the tables are and how they mark packets.
type Options struct {
	// Table is the name of the tables, one in the family ip and one in ip6.
	Table string
	// MasqueradeMark is the one bit of a packet's mark that is set between the choice of a backend and
	// postrouting. Zero means kube-proxy's bit, 0x4000.
	MasqueradeMark uint32
	// IPv4Only leaves IPv6 alone, for hosts without it.
	IPv4Only bool
	Log      *slog.Logger
}

// Datapath is the nftables datapath. It is safe for one caller at a time.
type Datapath struct {
	opts     Options
	log      *slog.Logger
	conn     *nftables.Conn
	lister   *lister
	families []*family

	services map[datapath.Name]*state
	numbers  map[bool]*numbers        // by IPv6
	shared   map[element]int          // how many Services hold an element that several may hold
	picks    map[bool]map[uint32]bool // pick chains that exist, by IPv6 and pick
	pods     datapath.LocalPods
	limit    int // elements in one transaction

	// strays is what the kernel holds and no Service has claimed yet. It is nil except while the kernel's
	// elements are being adopted.
	strays *strays
	// adopted says that services is what the kernel holds. It is false at start and after a failure whose
	// outcome is not known.
	adopted bool
	stats   datapath.Stats
}

var _ datapath.Datapath = (*Datapath)(nil)

// Open connects to the kernel and checks, by listing them, that nftables' tables can be used. It writes nothing.
func Open(o Options) (*Datapath, error) {
	if o.MasqueradeMark == 0 {
		o.MasqueradeMark = 0x4000
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	conn, err := dial()
	if err != nil {
		return nil, err
	}
	if _, err := conn.ListTablesOfFamily(nftables.TableFamilyIPv4); err != nil {
		return nil, errors.Join(fmt.Errorf("list nftables tables (is nf_tables in the kernel, and are you root?): %w", err), conn.CloseLasting())
	}
	lister, err := newLister()
	if err != nil {
		return nil, errors.Join(err, conn.CloseLasting())
	}
	return &Datapath{
		opts: o, log: o.Log, conn: conn, lister: lister, families: families(o),
		services: map[datapath.Name]*state{},
	}, nil
}

func families(o Options) []*family {
	all := []*family{newFamily(false, o.Table)}
	if !o.IPv4Only {
		all = append(all, newFamily(true, o.Table))
	}
	return all
}

// Close closes the connections to the kernel and leaves the tables.
func (d *Datapath) Close() error { return errors.Join(d.conn.CloseLasting(), d.lister.close()) }

// Stats returns what was written since Open.
func (d *Datapath) Stats() datapath.Stats {
	s := d.stats
	s.Services = len(d.services)
	return s
}

// Apply implements datapath.Datapath. Every Service changes in one transaction of the kernel, so a packet sees a Service
// as it was or as it is, and nothing between.
func (d *Datapath) Apply(ctx context.Context, u datapath.Update) error {
	if u.LocalPods != nil {
		d.pods = *u.LocalPods
	}
	if u.Full {
		u.Removed = d.missingFrom(u.Services)
	}
	want := u.Services
	if !d.adopted {
		// What was held before is planned again, against what the kernel really has.
		want = d.withHeld(u)
		if err := d.adopt(); err != nil {
			return err
		}
	}
	if err := d.ensureBase(); err != nil {
		return err
	}
	changes, errs := d.plan(u.Removed, want)
	if failed := d.commit(ctx, changes); len(failed) > 0 {
		return errors.Join(append(errs, failed...)...)
	}
	if d.strays != nil {
		if err := d.removeStrays(); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	return errors.Join(errs...)
}

// missingFrom returns the Services that are held and not among all.
func (d *Datapath) missingFrom(all []*datapath.Service) []datapath.Name {
	keep := make(map[datapath.Name]bool, len(all))
	for _, s := range all {
		keep[s.Name] = true
	}
	var gone []datapath.Name
	for n := range d.services {
		if !keep[n] {
			gone = append(gone, n)
		}
	}
	slices.SortFunc(gone, datapath.Name.Compare)
	return gone
}

// withHeld returns the Services of u and those held that u does not speak of.
func (d *Datapath) withHeld(u datapath.Update) []*datapath.Service {
	spoken := make(map[datapath.Name]bool, len(u.Services)+len(u.Removed))
	for _, s := range u.Services {
		spoken[s.Name] = true
	}
	for _, n := range u.Removed {
		spoken[n] = true
	}
	all := slices.Clone(u.Services)
	for n, st := range d.services {
		if !spoken[n] {
			all = append(all, st.service)
		}
	}
	return all
}

// change is the way of one Service from what the kernel holds to what it should hold.
type change struct {
	name     datapath.Name
	old, new *state // nil: none
	del, add []element
}

// plan computes the changes of Services that go and of those wanted. A Service that cannot be planned is left as it is.
func (d *Datapath) plan(gone []datapath.Name, want []*datapath.Service) ([]*change, []error) {
	changes := make([]*change, 0, len(gone)+len(want))
	var errs []error
	for _, n := range gone {
		if old := d.services[n]; old != nil {
			changes = append(changes, &change{name: n, old: old})
		}
	}
	for _, s := range want {
		c, err := d.planService(s)
		if err != nil {
			errs = append(errs, &datapath.ServiceError{Service: s.Name, Err: err})
			continue
		}
		changes = append(changes, c)
	}
	return changes, errs
}

func (d *Datapath) planService(s *datapath.Service) (*change, error) {
	c := &change{name: s.Name, old: d.services[s.Name]}
	var fresh []setOf
	st, err := assign(s, d.originOf(c.old), func(ipv6 bool) (setNumber, error) {
		n, err := d.numbers[ipv6].take()
		fresh = append(fresh, setOf{ipv6, n})
		return n, err
	})
	if err != nil {
		for _, f := range fresh {
			d.numbers[f.ipv6].release(f.number)
		}
		return nil, err
	}
	c.new = st
	return c, nil
}

// originOf is where a Service's sets are now: in its old state, or in the kernel's elements while those are adopted.
func (d *Datapath) originOf(old *state) origin {
	if d.strays != nil {
		return d.strays
	}
	return old
}

// set implements origin for a Service that is held; a nil state has nothing.
func (st *state) set(a datapath.Addr, inside bool) (slotted, bool) {
	if st == nil {
		return slotted{}, false
	}
	for i := range st.service.Ports {
		p := &st.service.Ports[i]
		if p.Protocol != a.Protocol || p.IPv6 != a.Addr().Is6() {
			continue
		}
		for k := range p.Frontends {
			if f := &p.Frontends[k]; p.FrontendAddr(f) == a {
				route := f.Outside
				if inside {
					route = f.Inside
				}
				have := st.sets[i][route.Set]
				return have, have.number != 0
			}
		}
	}
	return slotted{}, false
}
