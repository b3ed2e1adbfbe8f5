import subprocess
import sys


def test_collection_is_paused_and_earlier_objects_are_excluded_from_it():
    code = (
        "import gc\n"
        "from stormproof_train.cli.collection_pause import paused_collection\n"
        "try:\n"
        "    with paused_collection():\n"
        "        assert not gc.isenabled()\n"
        "        raise ImportError\n"
        "except ImportError:\n"
        "    pass\n"
        "assert gc.isenabled()\n"
        "assert gc.get_freeze_count() > 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_collection_is_not_paused_if_torch_is_already_imported():
    code = (
        "import gc, sys\n"
        "from stormproof_train.cli.collection_pause import paused_collection\n"
        "sys.modules['torch'] = sys\n"
        "with paused_collection():\n"
        "    assert gc.isenabled()\n"
        "assert gc.get_freeze_count() == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
