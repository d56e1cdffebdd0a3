"""The models of this device: installed, tested on canary images, activated, rolled back."""
