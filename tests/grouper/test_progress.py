from grouper import progress_bar


def test_a_bar_says_how_far_it_is_and_at_what(capsys):
    with progress_bar("searching") as progress:
        progress(3, 12, "layer 3, ward")
    shown = capsys.readouterr().err
    assert "searching" in shown and "3/12" in shown and "layer 3, ward" in shown
