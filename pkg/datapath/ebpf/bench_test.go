package ebpf

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var benchSizes = []int{1000, 10000, 50000}

// BenchmarkColdSync: Services of 5 backends in memory to kernel complete and hooks attached. cold is from nothing,
// warm is the next process on the same pins, which writes nothing.
func BenchmarkColdSync(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprintf("%dx5", n), func(b *testing.B) {
			w := newWorld(b)
			o := w.options("lbproxy")
			u := full(services(n, 5)...)
			var cold, warm time.Duration
			for b.Loop() {
				require.NoError(b, Cleanup(o))
				d, err := Open(o)
				require.NoError(b, err)
				start := time.Now()
				require.NoError(b, d.Apply(context.Background(), u))
				cold += time.Since(start)
				require.NoError(b, d.Close())

				start = time.Now()
				d, err = Open(o)
				require.NoError(b, err)
				require.NoError(b, d.Apply(context.Background(), u))
				warm += time.Since(start)
				require.Zero(b, d.Stats().Writes)
				require.NoError(b, d.Close())
			}
			b.ReportMetric(cold.Seconds()*1000/float64(b.N), "cold-ms")
			b.ReportMetric(warm.Seconds()*1000/float64(b.N), "warm-restart-ms")
		})
	}
}

// BenchmarkEndpointChange: one endpoint of one of n Services changes.
func BenchmarkEndpointChange(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := newWorld(b)
			d := w.open(w.options("lbproxy"))
			apply(b, d, full(services(n, 5)...))
			var took []time.Duration
			for i := 0; b.Loop(); i++ {
				u := changed(numbered(i*7919%n, 1+i%2, 5))
				start := time.Now()
				if err := d.Apply(context.Background(), u); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1000, "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1000, "p99-µs")
		})
	}
}
