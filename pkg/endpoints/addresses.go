package endpoints

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// WatchNodeAddrs calls f with the addresses of all interfaces, in the kernel's order, now and whenever they change, until
// ctx ends. It watches the network namespace of the calling thread at the time of the call. The first call of f comes
// before anything else, so a caller that wants NodePorts complete in the first update waits for it.
func WatchNodeAddrs(ctx context.Context, f func([]netip.Addr)) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	var last []netip.Addr
	for {
		err := watchAddrs(ctx, h, func(addrs []netip.Addr) {
			if last == nil || !slices.Equal(addrs, last) {
				last = addrs
				f(addrs)
			}
		})
		if err != nil || ctx.Err() != nil {
			return err
		}
		// The subscription was lost, for example because events came faster than they were read.
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// watchAddrs follows one subscription; it returns nil when that ends.
func watchAddrs(ctx context.Context, h *netlink.Handle, f func([]netip.Addr)) error {
	done := make(chan struct{})
	events := make(chan netlink.AddrUpdate, 64)
	err := netlink.AddrSubscribeWithOptions(events, done, netlink.AddrSubscribeOptions{ErrorCallback: func(error) {}})
	if err != nil {
		close(done)
		return fmt.Errorf("subscribe to addresses: %w", err)
	}
	defer func() {
		close(done)
		// The receiver may sit in a send; it sees done only after that.
		go func() {
			for range events {
			}
		}()
	}()
	for {
		addrs, err := listAddrs(h)
		if err != nil {
			return err
		}
		f(addrs)
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-events:
			if !ok {
				return nil
			}
		}
		for drained := false; !drained; {
			select {
			case _, ok := <-events:
				drained = !ok
			default:
				drained = true
			}
		}
	}
}

// ListNodeAddrs returns the addresses of all interfaces in the current network namespace, in the kernel's order.
func ListNodeAddrs() ([]netip.Addr, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	return listAddrs(h)
}

func listAddrs(h *netlink.Handle) ([]netip.Addr, error) {
	var list []netlink.Addr
	var err error
	// A dump that changes while it is read is interrupted and read again.
	for range 5 {
		list, err = h.AddrList(nil, netlink.FAMILY_ALL)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	addrs := make([]netip.Addr, 0, len(list))
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			addrs = append(addrs, ip.Unmap())
		}
	}
	return addrs, nil
}
