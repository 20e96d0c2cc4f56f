package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lbproxy/lbproxy/test/lab"
)

const (
	// patience is when waiting turns into failing. What is waited for is measured and logged, and takes far less.
	patience     = 20 * time.Second
	pollInterval = 5 * time.Millisecond

	// One in 10 million times, this many connections do not meet all of three backends.
	enough = 40
)

// flow is a client and whom it dials.
type flow struct {
	from    *lab.Host
	network string
	to      netip.AddrPort
}

// String says it in words.
func (f flow) String() string { return fmt.Sprintf("%s to %s/%s", f.from.Name, f.to, f.network) }

// answer is what is wanted of a number of connections.
type answer struct {
	what      string
	satisfied func([]lab.Answer) bool
	n         int           // how many connections
	timeout   time.Duration // of each of them
}

// by wants all of the backends and nobody else.
func by(want ...string) answer {
	slices.Sort(want)
	return answer{fmt.Sprint(want), func(a []lab.Answer) bool { return slices.Equal(backends(a), want) }, enough, 200 * time.Millisecond}
}

// byOneOf wants any of the backends.
func byOneOf(want ...string) answer {
	return answer{fmt.Sprint(want), func(a []lab.Answer) bool { return slices.Contains(want, a[0].Backend) }, 1, 200 * time.Millisecond}
}

var (
	refusal  = answer{"a refusal", func(a []lab.Answer) bool { return a[0].Refused() }, 1, 500 * time.Millisecond}
	noAnswer = answer{"no answer", func(a []lab.Answer) bool { return a[0].Error != "" }, 1, 200 * time.Millisecond}
)

// poll dials until the answers satisfy.
func (f flow) poll(want answer) error {
	deadline := time.Now().Add(patience)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		answers, err := f.from.DialN(lab.Request{Network: f.network, Addr: f.to, Timeout: want.timeout}, want.n)
		if err != nil {
			return err
		}
		if want.satisfied(answers) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: want %s, got %q", f, want.what, backends(answers))
		}
		time.Sleep(pause)
	}
}

// waitFor polls all flows at the same time until each is satisfied.
func waitFor(t *testing.T, flows []flow, want answer) {
	t.Helper()
	errs := make([]error, len(flows))
	var wg sync.WaitGroup
	for i, f := range flows {
		wg.Go(func() { errs[i] = f.poll(want) })
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
}

// reach waits until every flow reaches all of the wanted backends and nobody else. What it logs is how long after
// begin the first connection reached one of them, and how long after begin all flows were known to do.
func reach(t *testing.T, begin time.Time, what string, flows []flow, want ...string) {
	t.Helper()
	waitFor(t, flows[:1], byOneOf(want...))
	first := since(begin)
	waitFor(t, flows, by(want...))
	t.Logf("%s: first connection after %s, all %d flows checked after %s", what, first, len(flows), since(begin))
}

// refused waits until every flow is refused.
func refused(t *testing.T, begin time.Time, what string, flows []flow) {
	t.Helper()
	waitFor(t, flows, refusal)
	t.Logf("%s: all %d flows refused after %s", what, len(flows), since(begin))
}

// unanswered waits until nobody answers any of the flows; how they fail does not matter.
func unanswered(t *testing.T, begin time.Time, what string, flows []flow) {
	t.Helper()
	waitFor(t, flows, noAnswer)
	t.Logf("%s: no answer on %d flows after %s", what, len(flows), since(begin))
}

// backends returns who answered, sorted; an error is among them in words.
func backends(answers []lab.Answer) []string {
	var all []string
	for _, a := range answers {
		all = append(all, a.Backend+a.Error)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// keepDialing makes connections through all of the flows, which must be of one host, until the returned function
// checks that not one has failed.
func keepDialing(t *testing.T, flows ...flow) (stop func()) {
	t.Helper()
	targets := map[string][]netip.AddrPort{}
	for _, f := range flows {
		require.Equal(t, flows[0].from, f.from)
		targets[f.network] = append(targets[f.network], f.to)
	}
	var loads []*lab.Load
	for network, to := range targets {
		l, err := flows[0].from.Load(lab.LoadRequest{Network: network, Targets: to, Workers: 2, Rate: 200, Held: 2})
		require.NoError(t, err)
		loads = append(loads, l)
	}
	return func() {
		t.Helper()
		for _, l := range loads {
			r, err := l.Stop()
			require.NoError(t, err)
			require.Zero(t, r.Failures, "of %d connections from %s: %v", r.Connects, flows[0].from.Name, r.Errors)
			require.Zero(t, r.Resets, "of held connections from %s: %v", flows[0].from.Name, r.Errors)
			require.NotZero(t, r.Connects)
			t.Logf("%d connections from %s meanwhile, none failed", r.Connects, flows[0].from.Name)
		}
	}
}

func since(begin time.Time) time.Duration { return time.Since(begin).Round(100 * time.Microsecond) }
