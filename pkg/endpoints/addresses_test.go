package endpoints

import (
	"context"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// TestWatchNodeAddrs watches the loopback interface of a network namespace of its own.
func TestWatchNodeAddrs(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	got := make(chan []netip.Addr, 16)
	done := make(chan error, 1)
	handles := make(chan *netlink.Handle, 1)
	go func() {
		// The thread ends with the goroutine, and with it the namespace.
		runtime.LockOSThread()
		ns, err := netns.New()
		if err != nil {
			done <- err
			return
		}
		defer ns.Close()
		h, err := netlink.NewHandleAt(ns)
		if err != nil {
			done <- err
			return
		}
		handles <- h
		done <- WatchNodeAddrs(ctx, func(a []netip.Addr) { got <- a })
	}()
	var h *netlink.Handle
	select {
	case h = <-handles:
	case err := <-done:
		t.Fatalf("make a network namespace: %v", err)
	}
	defer h.Close()
	next := func() []netip.Addr {
		select {
		case a := <-got:
			return a
		case <-time.After(5 * time.Second):
			t.Fatal("no addresses")
			return nil
		}
	}
	require.Empty(t, next(), "a new namespace has none")
	lo, err := h.LinkByName("lo")
	require.NoError(t, err)
	for _, s := range []string{"172.18.0.11/24", "fd00:172:18::11/64"} {
		addr, err := netlink.ParseAddr(s)
		require.NoError(t, err)
		require.NoError(t, h.AddrAdd(lo, addr))
		require.Contains(t, next(), netip.MustParsePrefix(s).Addr())
	}
	addr, err := netlink.ParseAddr("172.18.0.11/24")
	require.NoError(t, err)
	require.NoError(t, h.AddrDel(lo, addr))
	require.Equal(t, []netip.Addr{netip.MustParseAddr("fd00:172:18::11")}, next())
	cancel()
	require.NoError(t, <-done)
}
