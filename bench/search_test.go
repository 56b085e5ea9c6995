package bench

import (
	"errors"
	"testing"
)

func TestSearchFindsTheHighestRateFromAnywhere(t *testing.T) {
	for _, limit := range []float64{1_000, 65_000, 1_300_000} {
		for _, start := range []float64{limit / 3, limit * 0.99, limit * 1.01, limit * 3} {
			probes := 0
			rate, err := search{probes: 20, step: 1.4, close: 1.05}.highest(start, func(rate float64) (bool, error) {
				probes++
				return rate <= limit, nil
			})
			if err != nil || rate > limit || rate < limit/1.06 || probes > 12 {
				t.Errorf("limit %g from %g: %g after %d probes, %v", limit, start, rate, probes, err)
			}
		}
	}
}

func TestSearchNearTheLastRateIsShort(t *testing.T) {
	for _, limit := range []float64{95, 100, 105} {
		probes := 0
		rate, err := nextSearch.highest(100, func(rate float64) (bool, error) {
			probes++
			return rate <= limit, nil
		})
		if err != nil || rate > limit || rate < limit/1.06 || probes > nextSearch.probes {
			t.Errorf("limit %g: %g after %d probes, %v", limit, rate, probes, err)
		}
	}
}

func TestSearchThatFindsNothingReturnsALowerRate(t *testing.T) {
	rate, err := firstSearch.highest(100, func(float64) (bool, error) { return false, nil })
	if err != nil || rate >= 100/1.4 {
		t.Errorf("got %g, %v", rate, err)
	}
	broken := errors.New("broken")
	if _, err := firstSearch.highest(100, func(float64) (bool, error) { return true, broken }); err != broken {
		t.Errorf("got %v", err)
	}
}
