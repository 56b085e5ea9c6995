package bench

// search configures the search for the highest rate.
type search struct {
	probes int     // at most
	step   float64 // factor by which the rate is raised and lowered until it is bracketed
	close  float64 // ratio refused/carried of the bracket's ends at which the search stops
}

// highest finds the highest rate that is carried, assuming that all lower rates are
// carried and all higher ones are not. It begins at start, which must be positive, and
// returns a rate that was carried, or if none was, one below all that were refused.
func (s search) highest(start float64, carries func(rate float64) (bool, error)) (float64, error) {
	rate, carried, refused := start, 0.0, 0.0
	for range s.probes {
		ok, err := carries(rate)
		if err != nil {
			return 0, err
		}
		if ok {
			carried = rate
		} else {
			refused = rate
		}
		switch {
		case refused == 0:
			rate = carried * s.step
		case carried == 0:
			rate = refused / s.step
		case refused < carried*s.close:
			return carried, nil
		default:
			rate = (carried + refused) / 2
		}
	}
	if carried == 0 {
		return rate, nil
	}
	return carried, nil
}
