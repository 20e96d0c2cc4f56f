package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sync/errgroup"

	"github.com/lbproxy/lbproxy/pkg/endpoints"
)

// runAgent runs until ctx ends. What it programmed stays.
func runAgent(ctx context.Context, o *options) error {
	if err := o.validate(); err != nil {
		return err
	}
	config, err := o.endpoints()
	if err != nil {
		return err
	}
	log, err := o.logger()
	if err != nil {
		return err
	}
	slog.SetDefault(log)
	if o.foreignMode != "" {
		log.Info("using proxy mode auto in place of kube-proxy's", "asked", o.foreignMode)
	}
	if err := needRoot(); err != nil {
		return err
	}
	unlock, err := lockInstance(o)
	if err != nil {
		return err
	}
	defer unlock()
	source, err := newSource(o, log)
	if err != nil {
		return err
	}
	dp, err := openDatapaths(o, log)
	if err != nil {
		return err
	}
	store := endpoints.NewStore(config, log)
	// The addresses come before the first Services, so that no NodePort is taken away for want of them.
	addrs, err := endpoints.ListNodeAddrs()
	if err != nil {
		return errors.Join(err, dp.Close())
	}
	store.SetNodeAddrs(addrs)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return endpoints.WatchNodeAddrs(ctx, store.SetNodeAddrs) })
	group.Go(func() error { return source.Run(ctx, store) })
	group.Go(func() error { return (&programmer{store: store, dp: dp, log: log}).run(ctx) })
	err = group.Wait()
	if errors.Is(err, context.Canceled) {
		log.Info("stopped; Services keep working as last programmed")
		err = nil
	}
	return errors.Join(err, dp.Close())
}

func newSource(o *options, log *slog.Logger) (endpoints.Source, error) {
	if o.manifests != "" {
		return &endpoints.ManifestSource{Dir: o.manifests}, nil
	}
	source, err := endpoints.NewAPISource(endpoints.APIOptions{Kubeconfig: o.kubeconfig, Master: o.master}, log)
	if err != nil {
		return nil, fmt.Errorf("%w (or use --manifests DIR for Services from files)", err)
	}
	return source, nil
}
