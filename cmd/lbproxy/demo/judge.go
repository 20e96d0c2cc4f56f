package demo

import (
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/lbproxy/lbproxy/test/lab"
)

// sample is everything that was dialed for one frontend, one client and one family.
type sample struct {
	ipv6    bool
	answers []lab.Answer
	direct  map[string][]time.Duration // time to connect to a backend's own address
}

// judge makes a cell of what was dialed, with everything that is not as e says.
func judge(f *frontend, client string, samples []sample, e expectation) Cell {
	c := Cell{
		Service: f.service, Kind: f.kind.String(), Network: f.network, IPv4: f.v4, IPv6: f.v6,
		Policy: f.policy(), Client: client,
		Answers: map[string]int{}, Sources: map[string]int{},
	}
	var ratios []float64
	for _, s := range samples {
		faults := map[string]int{}
		for _, a := range s.answers {
			c.Made++
			if fault := check(a, e); fault != "" {
				faults[fault]++
			}
			switch {
			case e.refused(a):
				c.Refused++
			case a.Error == "":
				c.Answers[a.Backend]++
				c.Sources[a.SeenSource.Addr().String()]++
			}
		}
		for _, fault := range sortedKeys(faults) {
			c.Problems = append(c.Problems, fmt.Sprintf("%s: %d of %d %s", f.addr(s.ipv6), faults[fault], len(s.answers), fault))
		}
		ratios = append(ratios, s.ratios()...)
	}
	// Among as many random choices as there are, each backend comes up.
	for _, b := range e.backends {
		if c.Answers[b] == 0 && c.Made >= 20*len(e.backends) {
			c.Problems = append(c.Problems, fmt.Sprintf("%s: %s never answered", f.v4, b))
		}
	}
	c.Ratio = median(ratios)
	return c
}

// addrOwners is whose each address is.
var addrOwners = owners()

// check says what is wrong with an answer, or nothing.
func check(a lab.Answer, e expectation) string {
	switch {
	case len(e.backends) == 0 && e.refused(a):
		return ""
	case len(e.backends) == 0 && a.Error == "":
		return fmt.Sprintf("were answered by %s instead of refused", a.Backend)
	case a.Error != "":
		return "failed: " + a.Error
	case !slices.Contains(e.backends, a.Backend):
		return "were answered by " + a.Backend + ", which is not a backend of it for this client"
	}
	if owner := ownerOf(a.SeenSource.Addr()); owner != e.source {
		return fmt.Sprintf("were seen from %s, an address of %s instead of %s", a.SeenSource.Addr(), owner, e.source)
	}
	return ""
}

func (e *expectation) refused(a lab.Answer) bool {
	return a.Refused() || e.forbidden && a.Errno == syscall.EPERM
}

func ownerOf(a netip.Addr) string {
	if o := addrOwners[a]; o != "" {
		return o
	}
	return "nobody"
}

// ratios compares every answer with the usual time to the pod that gave it: pods on other nodes are farther away.
func (s *sample) ratios() []float64 {
	usual := map[string]float64{}
	for backend, times := range s.direct {
		var all []float64
		for _, t := range times {
			all = append(all, float64(t))
		}
		usual[backend] = median(all)
	}
	var list []float64
	for _, a := range s.answers {
		if u := usual[a.Backend]; a.Error == "" && u > 0 {
			list = append(list, float64(a.Connect)/u)
		}
	}
	return list
}

// median returns 0 for no values.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
