package nftables

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
)

// Cleanup removes the tables. It is no error if there are none.
func Cleanup(o Options) error {
	c, err := dial()
	if err != nil {
		return err
	}
	var errs []error
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		tables, err := c.ListTablesOfFamily(family)
		if err != nil {
			errs = append(errs, fmt.Errorf("list nftables tables: %w", err))
			continue
		}
		for _, t := range tables {
			if t.Name != o.Table {
				continue
			}
			c.DelTable(t)
			if err := c.flush(); err != nil {
				errs = append(errs, fmt.Errorf("delete nftables table %s: %w", o.Table, err))
			}
		}
	}
	return errors.Join(append(errs, c.close())...)
}
