package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lbproxy/lbproxy/pkg/datapath"
	"github.com/lbproxy/lbproxy/pkg/endpoints"
)

// recorder is a datapath that remembers what it was told, and fails for some Services.
type recorder struct {
	mu      sync.Mutex
	applied []string
	audits  int
	failure func(u datapath.Update) error
}

func (r *recorder) Apply(_ context.Context, u datapath.Update) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for _, s := range u.Services {
		names = append(names, s.Name.Name)
	}
	if !u.Full && len(names)+len(u.Removed) == 0 {
		r.audits++
		return nil
	}
	r.applied = append(r.applied, fmt.Sprintf("%t %s", u.Full, strings.Join(names, " ")))
	if r.failure != nil {
		return r.failure(u)
	}
	return nil
}

func (r *recorder) Close() error          { return nil }
func (r *recorder) Stats() datapath.Stats { return datapath.Stats{} }

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.applied
	r.applied = nil
	return all
}

func (r *recorder) audited() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.audits
}

func (r *recorder) failWith(f func(datapath.Update) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failure = f
}

func clusterIP(name, ip string) *v1.Service {
	return &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: v1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}, IPFamilies: []v1.IPFamily{v1.IPv4Protocol},
			Ports: []v1.ServicePort{{Port: 80, Protocol: v1.ProtocolTCP}}},
	}
}

func failFor(name string) func(datapath.Update) error {
	return func(u datapath.Update) error {
		for _, s := range u.Services {
			if s.Name.Name == name {
				return errors.Join(nil, &datapath.ServiceError{Service: s.Name, Err: errors.New("too ugly")})
			}
		}
		return nil
	}
}

// running runs f beside a programmer, in the time of a bubble.
func running(t *testing.T, f func(store *endpoints.Store, r *recorder)) {
	synctest.Test(t, func(t *testing.T) {
		quiet := slog.New(slog.DiscardHandler)
		store, r := endpoints.NewStore(endpoints.Config{}, quiet), &recorder{}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- (&programmer{store: store, dp: layers{r}, log: quiet}).run(ctx) }()
		f(store, r)
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
	})
}

func TestOneBadServiceDelaysNoOther(t *testing.T) {
	running(t, func(store *endpoints.Store, r *recorder) {
		r.failWith(failFor("bad"))
		store.SetService(clusterIP("bad", "10.96.0.1"))
		store.SetService(clusterIP("good", "10.96.0.2"))
		store.Synced()
		synctest.Wait()
		require.Equal(t, []string{"true bad good"}, r.take())

		store.SetService(clusterIP("late", "10.96.0.3"))
		synctest.Wait() // no time passes
		require.Equal(t, []string{"false late"}, r.take())

		time.Sleep(firstRetry)
		synctest.Wait()
		require.Equal(t, []string{"false bad"}, r.take(), "tried again, alone")
		r.failWith(nil)
		time.Sleep(2 * firstRetry)
		synctest.Wait()
		require.Equal(t, []string{"false bad"}, r.take())
		time.Sleep(time.Hour)
		require.Empty(t, r.take())
		require.InDelta(t, 3600, r.audited(), 2)
	})
}

func TestAWorldThatFailedIsTriedWhole(t *testing.T) {
	running(t, func(store *endpoints.Store, r *recorder) {
		r.failWith(func(datapath.Update) error { return errors.New("no kernel today") })
		store.SetService(clusterIP("a", "10.96.0.1"))
		store.Synced()
		synctest.Wait()
		require.Equal(t, []string{"true a"}, r.take())
		store.SetService(clusterIP("b", "10.96.0.2"))
		synctest.Wait()
		require.Empty(t, r.take(), "nothing on top of an incomplete world")
		r.failWith(nil)
		time.Sleep(firstRetry)
		synctest.Wait()
		require.Equal(t, []string{"true a b"}, r.take())
	})
}

func TestFailedServices(t *testing.T) {
	bad := &datapath.ServiceError{Service: datapath.Name{Namespace: "x", Name: "y"}, Err: errors.New("why")}
	names, only := failedServices(errors.Join(errors.Join(bad), bad))
	require.True(t, only)
	require.Len(t, names, 2)
	_, only = failedServices(errors.Join(bad, errors.New("and more")))
	require.False(t, only)
}
