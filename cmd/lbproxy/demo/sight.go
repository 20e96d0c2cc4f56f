package demo

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	discovery "k8s.io/api/discovery/v1"

	"github.com/lbproxy/lbproxy/pkg/datapath"
	"github.com/lbproxy/lbproxy/test/lab"
)

// patience is how long a change may take until it is seen.
const patience = 3 * time.Second

// sight is how a client sees a change: by so many wanted answers in a row. Others are tolerable until then, or not.
type sight struct {
	want, tolerable func(lab.Answer) bool
	times           int
}

func answered(a lab.Answer) bool { return a.Error == "" }

func answeredOrRefused(a lab.Answer) bool { return answered(a) || a.Refused() }

// change edits the EndpointSlices of a service and waits until every client has seen it over both families.
func (s *stage) change(ctx context.Context, result *StepResult, service string, edit func(*discovery.EndpointSlice), look sight) error {
	i := slices.IndexFunc(frontends, func(f frontend) bool { return f.service == service && f.kind == datapath.ClusterIP })
	begin := time.Now()
	if err := s.edit(service+".yaml", edit); err != nil {
		return err
	}
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	for _, client := range clients {
		for _, ipv6 := range []bool{false, true} {
			group.Go(func() error {
				seen, problems, err := s.watch(ctx, client, request(&frontends[i], ipv6), look)
				mu.Lock()
				defer mu.Unlock()
				result.Effect = max(result.Effect, seen.Sub(begin))
				result.Problems = append(result.Problems, problems...)
				result.Failed += len(problems)
				return err
			})
		}
	}
	return group.Wait()
}

// watch dials until the change is seen, and returns when that was.
func (s *stage) watch(ctx context.Context, client string, r lab.Request, look sight) (seen time.Time, problems []string, err error) {
	begin, inRow := time.Now(), 0
	for time.Since(begin) < patience && len(problems) < enough {
		a, err := s.hosts[client].Dial(r)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return seen, problems, err
		}
		if !look.want(a) {
			inRow = 0
		} else if inRow++; inRow == 1 {
			seen = time.Now()
		}
		if inRow == look.times {
			return seen, problems, nil
		}
		if !look.want(a) && !look.tolerable(a) {
			problems = append(problems, fmt.Sprintf("%s to %s: %s %s", client, r.Addr, a.Backend, a.Error))
		}
	}
	return seen, append(problems, fmt.Sprintf("%s to %s: the change was not seen", client, r.Addr)), nil
}

func removed(list []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == name })
}
