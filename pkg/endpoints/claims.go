package endpoints

import (
	"cmp"
	"slices"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// claims says which Service owns an address (with port and protocol) that several want: the older one, by
// creationTimestamp, then by name. So a new Service never takes traffic from one that has it (CVE-2020-8554).
// A change costs the claims of the Service that changed.
type claims struct {
	owner map[datapath.Addr]*entry
	// rivals are all who want an address, if there are several. The first is the owner.
	rivals map[datapath.Addr][]*entry
}

func newClaims() claims {
	return claims{owner: map[datapath.Addr]*entry{}, rivals: map[datapath.Addr][]*entry{}}
}

func compareClaimants(a, b *entry) int {
	return cmp.Or(cmp.Compare(a.claimedAt, b.claimedAt), a.name.Compare(b.name))
}

// replace makes want the claims of e, which was created at the given time. It returns the Services for which
// something may have changed by that; e itself may be among them.
func (c *claims) replace(e *entry, created int64, want []datapath.Addr) (moved []*entry) {
	if created == e.claimedAt && slices.Equal(want, e.claimed) {
		return nil
	}
	for _, a := range e.claimed {
		moved = append(moved, c.release(e, a)...)
	}
	e.claimed, e.claimedAt = want, created
	for _, a := range want {
		moved = append(moved, c.claim(e, a)...)
	}
	return moved
}

func (c *claims) claim(e *entry, a datapath.Addr) (moved []*entry) {
	owner := c.owner[a]
	if owner == nil {
		c.owner[a] = e
		return nil
	}
	rivals := c.rivals[a]
	if rivals == nil {
		rivals = []*entry{owner}
	}
	i, _ := slices.BinarySearchFunc(rivals, e, compareClaimants)
	rivals = slices.Insert(rivals, i, e)
	c.rivals[a] = rivals
	if i > 0 {
		return nil
	}
	c.owner[a] = e
	return rivals
}

func (c *claims) release(e *entry, a datapath.Addr) (moved []*entry) {
	rivals := c.rivals[a]
	if rivals == nil {
		delete(c.owner, a)
		return nil
	}
	rivals = slices.DeleteFunc(slices.Clone(rivals), func(r *entry) bool { return r == e })
	if len(rivals) > 1 {
		c.rivals[a] = rivals
	} else {
		delete(c.rivals, a)
	}
	if c.owner[a] != e {
		return nil
	}
	c.owner[a] = rivals[0]
	return rivals
}

// lost says which claims of e others own.
func (c *claims) lost(e *entry) (faults []fault) {
	if len(c.rivals) == 0 {
		return nil
	}
	for _, a := range e.claimed {
		if o := c.owner[a]; o != e {
			faults = append(faults, faultf(a.String(), "belongs to service %s, which is %s", o.name, precedence(o, e)))
		}
	}
	return faults
}

func precedence(winner, loser *entry) string {
	if winner.claimedAt < loser.claimedAt {
		return "older"
	}
	return "as old and first by name"
}
