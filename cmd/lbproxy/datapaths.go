package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/lbproxy/lbproxy/pkg/datapath"
	"github.com/lbproxy/lbproxy/pkg/datapath/ebpf"
	"github.com/lbproxy/lbproxy/pkg/datapath/nftables"
)

// layers is one datapath behind another: all get every update, in order.
type layers []datapath.Datapath

// Apply implements datapath.Datapath. A failing layer does not keep the others from the update.
func (l layers) Apply(ctx context.Context, u datapath.Update) error {
	var errs []error
	for _, d := range l {
		errs = append(errs, d.Apply(ctx, u))
	}
	return errors.Join(errs...)
}

// Close implements datapath.Datapath.
func (l layers) Close() error {
	var errs []error
	for _, d := range l {
		errs = append(errs, d.Close())
	}
	return errors.Join(errs...)
}

// Stats implements datapath.Datapath.
func (l layers) Stats() (s datapath.Stats) {
	for _, d := range l {
		s = s.Add(d.Stats())
	}
	return s
}

// openDatapaths opens the layers that the proxy mode asks for and this machine can run. nftables comes first, so that
// a new Service has its second layer before the hook translates to it.
func openDatapaths(o *options, log *slog.Logger) (datapath.Datapath, error) {
	var open layers
	packets, packetErr := nftables.Open(o.nftables(log))
	switch {
	case packetErr == nil:
		open = append(open, packets)
	case o.proxyMode == modeNFTables:
		return nil, packetErr
	}
	if o.proxyMode == modeNFTables {
		// A hook that another mode left would go on with backends that nobody keeps up to date.
		if err := ebpf.Cleanup(o.ebpf(log)); err != nil {
			return nil, errors.Join(err, open.Close())
		}
		log.Info("datapaths", "nftables", "on", "ebpf", "off")
		return open, nil
	}
	sockets, socketErr := ebpf.Open(o.ebpf(log))
	switch {
	case socketErr == nil:
		open = append(open, sockets)
	case !errors.Is(socketErr, ebpf.ErrNotSupported):
		return nil, errors.Join(fmt.Errorf("open the eBPF datapath: %w", socketErr), open.Close())
	case o.proxyMode == modeEBPF:
		return nil, errors.Join(fmt.Errorf("open the eBPF datapath (--proxy-mode auto would go on without): %w", socketErr), open.Close())
	case packetErr != nil:
		return nil, fmt.Errorf("no datapath works here: %w", errors.Join(packetErr, socketErr))
	default:
		// The same hazard: an earlier run may have left a hook.
		if err := ebpf.Cleanup(o.ebpf(log)); err != nil {
			return nil, errors.Join(fmt.Errorf("remove the hook of an earlier run: %w", err), open.Close())
		}
	}
	log.Info("datapaths", "nftables", orOn(packetErr), "ebpf", orOn(socketErr))
	return open, nil
}

func orOn(err error) string {
	if err == nil {
		return "on"
	}
	return "off: " + err.Error()
}
